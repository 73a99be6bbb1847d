"""Exact search with distributions: images for a text by cosine, texts for an image by log-likelihood.

For one text both distributions grow with the cosine of its mean direction, so images are ranked by `mu'z`. For one
image the texts differ in concentration, and `kappa mu'z + G_d(kappa)`, or `kappa ln(1 + mu'z) + G_d(kappa)`, ranks
them (see [`objective`]): the former is an inner product of `[eta, G]` and `[z, 1]`, the latter is bounded by one (see
[`tangent_bound`]). Candidates come from float32 inner products by FAISS (Douze et al. 2024, "The Faiss library", arXiv
2401.08281), or from a scan by PyTorch; float64 scores and a bound on rounding prove for every query that none is
missed.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..model.modeling_asymvlm import AsymVLMModel
from ..model.objective_tiles import LOWEST_COSINE
from .gallery_scan import Tile
from .index_search import SearchableIndex
from .index_storage import Embeddings
from .power_spherical_bound import UNIT_ROUNDOFF, relative_rounding, tangent_queries
from .row_table import Metadata


# Where a cosine is below this, the Power Spherical scan bounds the score by that of this cosine instead of bounding
# its rounding, which grows towards the pole at -1.
LOW_COSINE = -0.5

# One in so many texts, but no fewer than MIN_SAMPLE, tell where the tangents of a first search touch.
SAMPLE_EVERY, MIN_SAMPLE = 64, 4096


class TextIndex(SearchableIndex):
    """
    Texts as distributions, to be searched by images: exact by log-likelihood.

    Rows are `[eta, G]` for `"vmf"` and `"deterministic"` (where eta = mu and G = 0), `[eta, kappa, G]` for
    `"power_spherical"`, in float32, with kappa and G in float64 beside them: 4 (d + 1) + 16 or 4 (d + 2) + 16 bytes a
    text, and its label.

    Example:

    ```python
    >>> import torch
    >>> from modeling_asymvlm import TextIndex

    >>> index = TextIndex(3, distribution="vmf")
    >>> index.add(torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 9.0, 0.0]]), ["a red dot", "a dot", "a tree"])
    >>> index.search(torch.tensor([[1.0, 0.0, 0.0]]), k=2).labels
    [['a red dot', 'a dot']]

    ```

    Args:
        dim (`int`): width of the embeddings.
        distribution (`str`): `"vmf"`, `"power_spherical"` or `"deterministic"`.
        normalizer (`str`, *optional*, defaults to `"exact"`): `"exact"` or `"paper"`.
        logit_scale (`float`, *optional*, defaults to 1.0): temperature tau of the posterior.
    """

    kind = "text"

    def __init__(self, dim: int, *, distribution: str, normalizer: str = "exact", logit_scale: float = 1.0):
        super().__init__(dim, distribution=distribution, normalizer=normalizer, logit_scale=logit_scale)
        self._set_parameters({"concentration": np.empty(0), "log_normalizer": np.empty(0)})

    @property
    def concentration(self) -> np.ndarray:
        """kappa of every text, float64 of shape `(rows,)`; without meaning for `distribution="deterministic"`."""
        return self._concentration

    @property
    def log_normalizer(self) -> np.ndarray:
        """
        G(kappa) = ln C(kappa) - ln C(0) of every text, float64 of shape `(rows,)`, to a relative error of about 1e-14;
        0 for `distribution="deterministic"`. The score of a text for a unit image z is `eta'z + G` under `"vmf"` and
        `kappa ln(1 + eta'z/kappa) + G` under `"power_spherical"`.
        """
        return self._log_normalizer

    @property
    def bound_column(self) -> np.ndarray | None:
        """
        The column of [`vectors`] that makes their inner products with [`query_vectors`] a bound on the Power Spherical
        score: kappa, float32 of shape `(rows,)`, the last but one. `None` for `"vmf"` and `"deterministic"`, where the
        inner product is the score.
        """
        return None if self.law.is_linear else self.vectors[:, -2]

    def add(
        self, embeddings: Embeddings, labels: Sequence[str] | None = None, metadata: Metadata | None = None
    ) -> None:
        """
        Appends texts, all of them or, after an error, none.

        Args:
            embeddings (`torch.Tensor` or array of shape `(texts, dim)`): natural parameters eta, kept in float32.
            labels (`Sequence[str]`, *optional*): their captions, by default the row numbers.
            metadata (`dict` of columns or `pa.Table`, *optional*):
                One value for each text in every column, to choose rows by with `search(..., where=...)`. Columns may
                be new: rows that lack one have null there.

        Raises:
            TypeError: for labels that are no strings.
            ValueError: for embeddings of another width, NaN, another number of labels, metadata of another number or
                type, and for a memory-mapped index.
        """
        eta = self._checked(embeddings, "text_embeds").float()
        if not self.law.has_concentration:
            if not eta.any(dim=1).all():
                raise ValueError("Some text_embeds are zero and so have no direction: leave these texts out.")
            eta = F.normalize(eta.double(), dim=-1).float()
        concentration = torch.linalg.vector_norm(eta.double(), dim=-1)
        log_normalizers = self._log_normalizers(concentration)
        columns = [log_normalizers] if self.law.is_linear else [concentration, log_normalizers]
        vectors = torch.cat([eta, torch.stack(columns, dim=1).float()], dim=1)
        self._append(vectors.numpy(), labels, metadata)
        new = {"concentration": concentration.numpy(), "log_normalizer": log_normalizers.numpy()}
        self._set_parameters({name: np.concatenate([old, new[name]]) for name, old in self._parameters().items()})

    def query_vectors(self, image_embeds: Embeddings) -> np.ndarray:
        """
        Vectors whose inner product with [`vectors`] is the score of a text, for `"vmf"` and `"deterministic"`, or a
        bound on it that is close to it for the best texts, for `"power_spherical"`: queries for any other engine.

        Args:
            image_embeds (`torch.Tensor` or array of shape `(images, dim)`): of any non-zero length.

        Returns:
            float32 of shape `(images, width)`.
        """
        images = self._prepare(image_embeds)
        return self._bound_queries(images, self._tangents(images, None))[0].numpy()

    def _extra_columns(self) -> int:
        return 1 if self.law.is_linear else 2

    def _embed(self, model: AsymVLMModel, features: torch.Tensor) -> torch.Tensor:
        return model.get_text_features(text_features=features, return_dict=True).pooler_output

    def _take_parameters(self, rows: np.ndarray) -> None:
        self._set_parameters({name: values[rows] for name, values in self._parameters().items()})

    def _parameters(self) -> dict[str, np.ndarray]:
        return {"concentration": self._concentration, "log_normalizer": self._log_normalizer}

    def _row_columns(self) -> dict[str, np.ndarray]:
        return self._parameters()

    def _set_columns(self, columns: dict[str, np.ndarray], extent: dict[str, tuple[float, float]]) -> None:
        self._set_parameters(columns)
        self._highest_concentration = extent["concentration"][1]

    def _set_parameters(self, parameters: dict[str, np.ndarray]) -> None:
        self._concentration, self._log_normalizer = parameters["concentration"], parameters["log_normalizer"]
        self._highest_concentration = self._concentration.max(initial=0)
        self._score_at_low_cosine = np.max(
            self._concentration * np.log1p(LOW_COSINE) + self._log_normalizer, initial=-np.inf
        )
        self._sample = None

    def _row_uncertainty(self) -> np.ndarray | None:
        return self._uncertainty_of(self._concentration) if self.law.has_concentration else None

    def _rows_in_range(self, low: float, high: float) -> np.ndarray:
        if not self.law.has_concentration:
            raise ValueError("where= filters by uncertainty, which texts of a deterministic model do not have.")
        uncertainty = self._uncertainty_of(self._concentration)
        rows = np.flatnonzero((uncertainty >= low) & (uncertainty <= high))
        if not len(rows):
            raise ValueError(
                f"No text has an uncertainty from {low:g} to {high:g}; those of this index lie from "
                f"{uncertainty.min():.3g} to {uncertainty.max():.3g}."
            )
        return rows

    def _prepare(self, queries: Embeddings) -> torch.Tensor:
        images = self._checked(queries, "image_embeds")
        if not images.any(dim=1).all():
            raise ValueError("Some image_embeds are zero and so have no direction: leave these queries out.")
        return F.normalize(images, dim=-1)

    def _tangents(self, batch: torch.Tensor, last: np.ndarray | None) -> torch.Tensor:
        if self.law.is_linear:
            return torch.zeros(len(batch), dtype=torch.float64)
        if last is None:
            return self._typical_best_cosines(batch)
        return torch.from_numpy(self._cosines(batch, last[:, None])[:, 0])

    def _bound_queries(self, batch: torch.Tensor, tangents: torch.Tensor) -> tuple[torch.Tensor, float | np.ndarray]:
        if self.law.is_linear:
            slack = 2 * self._highest_concentration * relative_rounding(self._faiss.d)
            return torch.cat([batch, torch.ones(len(batch), 1)], dim=1).float(), slack
        return tangent_queries(batch, tangents), 0.0

    def _touching(self, batch: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        lengths = torch.linalg.vector_norm(vectors[:, : self.dim], dim=-1)
        return torch.where(lengths > 0, 1 / lengths - 1, 0)

    @property
    def _longest_vector(self) -> float:
        """Of `[eta, kappa, G]`, as G is no larger than kappa."""
        return 1.001 * math.sqrt(3) * float(self._highest_concentration)

    def _typical_best_cosines(self, images: torch.Tensor) -> torch.Tensor:
        """Cosines, float64, of the best texts of a sample."""
        if self._sample is None:
            step = max(1, min(SAMPLE_EVERY, len(self) // MIN_SAMPLE))
            self._sample = torch.from_numpy(self._writable_vectors()[::step].copy())
        eta, kappa, log_normalizers = self._sample[:, : self.dim], self._sample[:, -2], self._sample[:, -1]
        cosines = images.float() @ eta.T / kappa.clamp(min=torch.finfo(torch.float32).tiny)
        best = self._likelihood(cosines, kappa, log_normalizers).argmax(dim=1, keepdim=True)
        return cosines.gather(1, best)[:, 0].double()

    def _tiles(self, batch: torch.Tensor) -> Callable[[int, int], Tile]:
        vectors = torch.from_numpy(self._writable_vectors())
        columns = vectors.shape[1] - self.dim
        constants = torch.tensor([[1.0]] if columns == 1 else [[0.0, 0.0]])
        directions = torch.cat([batch, constants.expand(len(batch), -1)], dim=1).float()

        def tile(start: int, stop: int) -> Tile:
            rows = vectors[start:stop]
            scores = directions @ rows.T
            if columns == 2:
                kappa, log_normalizers = rows[:, -2].contiguous(), rows[:, -1].contiguous()
                scores *= kappa.clamp(min=torch.finfo(torch.float32).tiny).reciprocal()
                scores = scores.clamp_(min=LOWEST_COSINE).log1p_().mul_(kappa).add_(log_normalizers)
            return Tile(scores, scores)

        return tile

    def _scan_bounds(self, queries: torch.Tensor, smallest_keys: np.ndarray) -> np.ndarray:
        rounding = 2 * self._highest_concentration * relative_rounding(self._faiss.d)
        if self.law.is_linear:
            return smallest_keys + rounding
        # Above LOW_COSINE the slope of ln(1 + t) is at most 2; below it, the score is at most that at LOW_COSINE.
        slack = 1 / (1 + LOW_COSINE) * rounding + 16 * UNIT_ROUNDOFF * self._highest_concentration
        return np.maximum(smallest_keys, self._score_at_low_cosine) + slack

    def _cosines(self, images: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        products = self._inner_products(images, rows, normalize=False)
        return products / np.maximum(self._concentration[rows], np.finfo(np.float64).tiny)

    def _keys(self, batch: torch.Tensor, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        cosines = torch.from_numpy(self._cosines(batch[queries], rows))
        parameters = (torch.from_numpy(values[rows]) for values in (self._concentration, self._log_normalizer))
        return self._likelihood(cosines, *parameters).numpy()

    def _scores(self, batch: torch.Tensor, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return keys

    def _uncertainty(self, batch: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        return self._uncertainty_of(self._concentration[rows])
