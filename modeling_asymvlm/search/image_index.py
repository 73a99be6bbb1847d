"""Images as points, to be searched by texts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from ..calibration.calibration import Calibration
from ..calibration.evidence import EvidenceCorrection
from ..model.modeling_asymvlm import AsymVLMModel
from ..store.embedding_store import EmbeddingSplit
from .corrected_scores import CorrectedScores
from .index_search import SearchableIndex
from .index_storage import Embeddings
from .power_spherical_bound import relative_rounding


SAMPLE_SIZE = 4096  # images that tell where the tangents of a first search touch
ROWS_PER_PRODUCT = 16_384


class ImageIndex(SearchableIndex):
    """
    Images as unit vectors, to be searched by texts: exact by the cosine of the mean direction, which ranks as the
    log-likelihood does. Rows are the unit vectors in float32, which search is exact for: 4 d bytes an image, and its
    label.

    With a calibration, images are ranked by the evidence-corrected score (see [`evidence`]) and the evidence of every
    image is one more column. `scores` are then the corrected ones, in nats, and the posterior is their softmax;
    results carry `confidence` and `presence`.

    A text without direction, eta = 0, is the uniform distribution: all images score 0, and the first rows are listed,
    or with a calibration those of least evidence.

    Args:
        dim (`int`): width of the embeddings.
        distribution (`str`): `"vmf"`, `"power_spherical"` or `"deterministic"`.
        normalizer (`str`, *optional*, defaults to `"exact"`): `"exact"` or `"paper"`.
        logit_scale (`float`, *optional*, defaults to 1.0): temperature tau of the posterior.
        calibration (`Calibration`, *optional*): of the model's head.
    """

    kind = "image"

    def __init__(
        self,
        dim: int,
        *,
        distribution: str,
        normalizer: str = "exact",
        logit_scale: float = 1.0,
        calibration: Calibration | None = None,
    ):
        self.calibration = calibration
        self._set_correction(
            None if calibration is None else calibration.correction,
            None if calibration is None else calibration.identity,
        )
        super().__init__(dim, distribution=distribution, normalizer=normalizer, logit_scale=logit_scale)

    def _set_correction(self, correction: EvidenceCorrection | None, identity: str | None) -> None:
        self.correction, self.calibration_identity = correction, identity
        self._moments_of: tuple[int, torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_split(
        cls,
        model: AsymVLMModel,
        split: EmbeddingSplit,
        *,
        batch_size: int = 4096,
        calibration: Calibration | None = None,
        **options: Any,
    ) -> Self:
        """
        An index of the images of a split of an `EmbeddingStore`, with the distribution and the temperature of the
        model.

        Args:
            model (`AsymVLMModel`): in evaluation mode, on any device.
            split (`EmbeddingSplit`): its images are indexed.
            batch_size (`int`, *optional*, defaults to 4096): rows at a time.
            calibration (`Calibration`, *optional*): of the model's head; ranks by corrected scores.

        Raises:
            ValueError: for the calibration of another head.
        """
        if calibration is not None:
            calibration.check_head(model)
        return super().from_split(model, split, batch_size=batch_size, calibration=calibration, **options)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: AsymVLMModel | None = None,
        splits: Sequence[EmbeddingSplit] | None = None,
        memory_map: bool = False,
        calibration: Calibration | None = None,
    ) -> Self:
        """
        As [`FlatIndex.load`]. An index that was saved with a calibration ranks by it whether or not it is passed; only
        with it does the index give `confidence` and `presence`, and can grow.

        Raises:
            ValueError: also for another calibration than the index was made with.
        """
        index = super().load(path, model=model, splits=splits, memory_map=memory_map)
        if calibration is not None and calibration.identity != index.calibration_identity:
            made = (
                "with another calibration"
                if index.calibration_identity
                else "without one, not with another calibration"
            )
            raise ValueError(f"The index at {str(path)!r} was made {made}: build it again with this one.")
        index.calibration = calibration
        return index

    @classmethod
    def _from_settings(cls, manifest: dict[str, Any]) -> Self:
        index = super()._from_settings(manifest)
        if manifest.get("calibration") is None:
            return index
        corrected = cls.__new__(cls)
        corrected.calibration = None
        corrected._set_correction(
            EvidenceCorrection(float(manifest["sigma"]), float(manifest["beta"])), str(manifest["calibration"])
        )
        SearchableIndex.__init__(
            corrected,
            index.dim,
            distribution=index.law.distribution,
            normalizer=index.law.normalizer,
            logit_scale=index.logit_scale,
        )
        return corrected

    def _more_settings(self) -> dict[str, Any]:
        if self.correction is None:
            return {}
        settings = {"sigma": self.correction.sigma, "beta": self.correction.beta}
        return {**settings, "calibration": self.calibration_identity}

    @property
    def posterior_scale(self) -> float:
        """Corrected scores hold the temperature."""
        return self.logit_scale if self.correction is None else 1.0

    @property
    def evidence(self) -> np.ndarray | None:
        """e(z) of every image as it is ranked by, float32 of shape `(rows,)`; `None` without a calibration."""
        return None if self.correction is None else self.vectors[:, -1]

    def add(self, embeddings: Embeddings, labels: Sequence[str] | None = None) -> None:
        """
        Appends images, all of them or, after an error, none.

        Args:
            embeddings (`torch.Tensor` or array of shape `(images, dim)`): of any non-zero length.
            labels (`Sequence[str]`, *optional*): their ids, by default the row numbers.

        Raises:
            TypeError: for labels that are no strings.
            ValueError: for embeddings of another width, NaN or without direction, another number of labels, for a
                memory-mapped index, and for one that was loaded without its calibration.
        """
        images = self._checked(embeddings, "image_embeds")
        if not images.any(dim=1).all():
            raise ValueError("Some image_embeds are zero and so have no direction: leave these images out.")
        vectors = F.normalize(images, dim=-1).float()
        if self.correction is not None:
            if self.calibration is None:
                raise ValueError(
                    "This index ranks by corrected scores, and needs its calibration to add images: load it with "
                    "calibration=."
                )
            vectors = torch.cat([vectors, self.calibration.evidence(vectors)[:, None].float()], dim=1)
        self._append(vectors.numpy(), labels)

    def query_vectors(self, text_embeds: Embeddings) -> np.ndarray:
        """
        Vectors whose inner product with [`vectors`] ranks the images of a text: queries for any other engine. Without
        a calibration, and with one for `"vmf"` and `"deterministic"`, the ranking is the exact one up to rounding; for
        `"power_spherical"` with a calibration the product is a bound on the score, up to a constant of the text, that
        is close to it for the best images.

        Args:
            text_embeds (`torch.Tensor` or array of shape `(texts, dim)`): natural parameters.

        Returns:
            float32 of shape `(texts, width)`.
        """
        texts = self._prepare(text_embeds)
        return self._faiss_queries(texts, np.arange(len(texts)), None)[0].numpy()

    def _extra_columns(self) -> int:
        return 0 if self.correction is None else 1

    def _embed(self, model: AsymVLMModel, features: torch.Tensor) -> torch.Tensor:
        return model.get_image_features(image_features=features, return_dict=True).pooler_output

    def _parameters(self) -> dict[str, np.ndarray]:
        return {}

    def _set_parameters(self, parameters: dict[str, np.ndarray]) -> None:
        """Nothing is kept beside the vectors."""

    def _prepare(self, queries: Embeddings) -> torch.Tensor:
        return self._checked(queries, "text_embeds")

    @property
    def _corrected(self) -> CorrectedScores | None:
        if self.correction is None:
            return None
        return CorrectedScores(self.law, self.logit_scale, self.correction)

    def _largest_evidence(self) -> float:
        return float(np.abs(self._writable_vectors()[:, -1]).max(initial=0.0))

    def _faiss_queries(
        self, batch: torch.Tensor, queries: np.ndarray, best: np.ndarray | None
    ) -> tuple[torch.Tensor, float | np.ndarray]:
        texts = batch[queries]
        if self._corrected is None:
            return F.normalize(texts, dim=-1).float(), relative_rounding(self.dim)
        if best is None:
            tangents = self._typical_best_cosines(texts)
        else:
            tangents = torch.from_numpy(
                self._inner_products(F.normalize(texts, dim=-1), best[:, None], normalize=True)[:, 0]
            )
        return self._corrected.query_vectors(texts, tangents, self._largest_evidence())

    def _typical_best_cosines(self, texts: torch.Tensor) -> torch.Tensor:
        """Cosines, float64, of the best images of a sample."""
        assert self._corrected is not None
        vectors = self._writable_vectors()
        sample = torch.from_numpy(vectors[:: max(1, len(vectors) // SAMPLE_SIZE)].copy())
        cosines = F.normalize(texts, dim=-1).float() @ sample[:, : self.dim].T
        best = self._corrected.of_cosines(cosines, texts, sample[:, -1]).argmax(dim=1, keepdim=True)
        return cosines.gather(1, best)[:, 0].double()

    def _tiles(self, batch: torch.Tensor) -> Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]:
        vectors = torch.from_numpy(self._writable_vectors())
        directions = F.normalize(batch, dim=-1).float()
        corrected = self._corrected
        if corrected is not None:

            def corrected_tile(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
                rows = vectors[start:stop]
                scores = corrected.of_cosines(directions @ rows[:, : self.dim].T, batch, rows[:, -1])
                return scores, scores

            return corrected_tile
        concentration = torch.linalg.vector_norm(batch, dim=-1, keepdim=True)
        log_normalizers = self._log_normalizers(concentration).float()
        concentration = concentration.float()

        def tile(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
            cosines = directions @ vectors[start:stop].T
            return cosines, self._likelihood(cosines, concentration, log_normalizers)

        return tile

    def _scan_bounds(self, queries: torch.Tensor, smallest_keys: np.ndarray) -> np.ndarray:
        if self._corrected is None:
            return smallest_keys + relative_rounding(self.dim)
        lowest = float(self._writable_vectors()[:, -1].min(initial=0.0))
        return self._corrected.scan_bounds(smallest_keys, queries, lowest, self._largest_evidence())

    def _keys(self, batch: torch.Tensor, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        cosines = self._inner_products(F.normalize(batch[queries], dim=-1), rows, normalize=True)
        if self._corrected is None:
            return cosines
        evidence = torch.from_numpy(self._writable_vectors()[rows, -1]).double()
        return self._corrected.of_cosines(torch.from_numpy(cosines), batch[queries], evidence).numpy()

    def _scores(self, batch: torch.Tensor, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        if self._corrected is not None:
            return keys
        concentration = torch.linalg.vector_norm(batch[queries], dim=-1, keepdim=True)
        log_normalizers = self._log_normalizers(concentration)
        return self._likelihood(torch.from_numpy(keys), concentration, log_normalizers).numpy()

    def _uncertainty(self, batch: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        concentration = torch.linalg.vector_norm(batch, dim=-1, keepdim=True).numpy()
        return np.broadcast_to(self._uncertainty_of(concentration), rows.shape)

    def _confidences(
        self, prepared: torch.Tensor, log_posterior: np.ndarray | None, prior: float
    ) -> dict[str, np.ndarray | None]:
        if self.calibration is None:
            return {}
        found: dict[str, np.ndarray | None] = {"confidence": None, "presence": None}
        if log_posterior is not None:
            found["confidence"] = self.calibration.result_confidence(log_posterior[:, 0])
        if len(self) > 1:
            directions = F.normalize(prepared, dim=-1)
            queries = torch.cat([directions.float(), torch.zeros(len(prepared), 1)], dim=1)
            top_two = self._faiss.search(queries.numpy(), 2)[0]
            mean, second = self._moments()
            average = directions @ mean
            deviation = ((directions @ second * directions).sum(dim=1) - average.square()).clamp(min=0).sqrt()
            found["presence"] = self.calibration.presence(
                prepared, top_two[:, 0], top_two[:, 1], average, deviation, len(self), prior
            )
        return found

    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean `(dim,)` and second moment `(dim, dim)` of the unit vectors, float64, kept until the index grows."""
        if self._moments_of is None or self._moments_of[0] != len(self):
            vectors = torch.from_numpy(self._writable_vectors())
            total, squares = (
                torch.zeros(self.dim, dtype=torch.float64),
                torch.zeros(2 * (self.dim,), dtype=torch.float64),
            )
            for rows in vectors.split(ROWS_PER_PRODUCT):
                units = rows[:, : self.dim].double()
                total += units.sum(dim=0)
                squares += units.T @ units
            self._moments_of = len(self), total / len(vectors), squares / len(vectors)
        return self._moments_of[1:]
