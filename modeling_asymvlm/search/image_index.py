"""Images as points, to be searched by texts."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..model.modeling_asymvlm import AsymVLMModel
from .index_search import SearchableIndex
from .index_storage import Embeddings
from .power_spherical_bound import relative_rounding


class ImageIndex(SearchableIndex):
    """
    Images as unit vectors, to be searched by texts: exact by the cosine of the mean direction, which ranks as the
    log-likelihood does. Rows are the unit vectors in float32, which search is exact for: 4 d bytes an image, and its
    label.

    A text without direction, eta = 0, is the uniform distribution: all images score 0, and the first rows are listed.

    Args:
        dim (`int`): width of the embeddings.
        distribution (`str`): `"vmf"`, `"power_spherical"` or `"deterministic"`.
        normalizer (`str`, *optional*, defaults to `"exact"`): `"exact"` or `"paper"`.
        logit_scale (`float`, *optional*, defaults to 1.0): temperature tau of the posterior.
    """

    kind = "image"

    def add(self, embeddings: Embeddings, labels: Sequence[str] | None = None) -> None:
        """
        Appends images, all of them or, after an error, none.

        Args:
            embeddings (`torch.Tensor` or array of shape `(images, dim)`): of any non-zero length.
            labels (`Sequence[str]`, *optional*): their ids, by default the row numbers.

        Raises:
            TypeError: for labels that are no strings.
            ValueError: for embeddings of another width, NaN or without direction, another number of labels, and for a
                memory-mapped index.
        """
        images = self._checked(embeddings, "image_embeds")
        if not images.any(dim=1).all():
            raise ValueError("Some image_embeds are zero and so have no direction: leave these images out.")
        self._append(F.normalize(images, dim=-1).float().numpy(), labels)

    def _extra_columns(self) -> int:
        return 0

    def _embed(self, model: AsymVLMModel, features: torch.Tensor) -> torch.Tensor:
        return model.get_image_features(image_features=features).pooler_output

    def _parameters(self) -> dict[str, np.ndarray]:
        return {}

    def _set_parameters(self, parameters: dict[str, np.ndarray]) -> None:
        """Nothing is kept beside the vectors."""

    def _prepare(self, queries: Embeddings) -> torch.Tensor:
        return self._checked(queries, "text_embeds")

    def _faiss_queries(
        self, batch: torch.Tensor, queries: np.ndarray, best: np.ndarray | None
    ) -> tuple[torch.Tensor, float]:
        return F.normalize(batch[queries], dim=-1).float(), relative_rounding(self.dim)

    def _tiles(self, batch: torch.Tensor) -> Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]:
        vectors = torch.from_numpy(self._writable_vectors())
        directions = F.normalize(batch, dim=-1).float()
        concentration = torch.linalg.vector_norm(batch, dim=-1, keepdim=True)
        log_normalizers = self._log_normalizers(concentration).float()
        concentration = concentration.float()

        def tile(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
            cosines = directions @ vectors[start:stop].T
            return cosines, self._likelihood(cosines, concentration, log_normalizers)

        return tile

    def _scan_bounds(self, smallest_keys: np.ndarray) -> np.ndarray:
        return smallest_keys + relative_rounding(self.dim)

    def _keys(self, batch: torch.Tensor, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._inner_products(F.normalize(batch[queries], dim=-1), rows, normalize=True)

    def _scores(self, batch: torch.Tensor, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        concentration = torch.linalg.vector_norm(batch[queries], dim=-1, keepdim=True)
        log_normalizers = self._log_normalizers(concentration)
        return self._likelihood(torch.from_numpy(keys), concentration, log_normalizers).numpy()

    def _uncertainty(self, batch: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        concentration = torch.linalg.vector_norm(batch, dim=-1, keepdim=True).numpy()
        return np.broadcast_to(self._uncertainty_of(concentration), rows.shape)
