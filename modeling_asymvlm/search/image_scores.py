"""How images are ranked for a text: by cosine, or with a calibration by the corrected score."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from ..calibration.calibration import Calibration
from ..calibration.evidence import EvidenceCorrection
from .corrected_scores import CorrectedScores
from .gallery_scan import Tile
from .gallery_summary import GallerySummary
from .index_search import SearchableIndex
from .index_storage import Embeddings
from .power_spherical_bound import relative_rounding
from .search_results import Confidences


SAMPLE_SIZE = 4096  # images that tell where the tangents of a first search touch
CLOSEST_IMAGES = 4  # by cosine, of which two are wanted


class ScoredImages(SearchableIndex):
    """
    What [`~image_index.ImageIndex`] ranks by.

    Attributes:
        calibration (`Calibration`, *optional*): gives the evidence of new images, and confidences.
        correction (`EvidenceCorrection`, *optional*): of the scores; the last column of vectors is then the evidence.
    """

    calibration: Calibration | None = None
    correction: EvidenceCorrection | None = None
    _corrected: CorrectedScores | None = None

    @property
    def posterior_scale(self) -> float:
        """Corrected scores hold the temperature."""
        return self.logit_scale if self.correction is None else 1.0

    def _set_summary(self, summary: GallerySummary) -> None:
        self._summary = summary
        self._sample = None

    def _prepare(self, queries: Embeddings) -> torch.Tensor:
        return self._checked(queries, "text_embeds")

    def _tangents(self, batch: torch.Tensor, last: np.ndarray | None) -> torch.Tensor:
        if self._corrected is None or self.law.is_linear:
            return torch.zeros(len(batch), dtype=torch.float64)
        if last is None:
            return self._typical_best_cosines(self._corrected, batch)
        cosines = self._inner_products(F.normalize(batch, dim=-1), last[:, None], normalize=True)
        return torch.from_numpy(cosines[:, 0])

    def _bound_queries(self, batch: torch.Tensor, tangents: torch.Tensor) -> tuple[torch.Tensor, float | np.ndarray]:
        if self._corrected is None:
            return F.normalize(batch, dim=-1).float(), relative_rounding(self.dim)
        return self._corrected.query_vectors(batch, tangents, self._summary.largest_evidence)

    def _touching(self, batch: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        if self._corrected is None or self.law.is_linear:
            return torch.zeros(len(batch), dtype=torch.float64)
        return self._corrected.touching(batch, vectors)

    @property
    def _longest_vector(self) -> float:
        return 1.001 * math.hypot(1, 0 if self._corrected is None else self._summary.largest_evidence)

    def _typical_best_cosines(self, corrected: CorrectedScores, texts: torch.Tensor) -> torch.Tensor:
        """Cosines, float64, of the best images of a sample."""
        if self._sample is None:
            self._sample = torch.from_numpy(self._writable_vectors()[:: max(1, len(self) // SAMPLE_SIZE)].copy())
        cosines = F.normalize(texts, dim=-1).float() @ self._sample[:, : self.dim].T
        best = corrected.of_cosines(cosines, texts, self._sample[:, -1]).argmax(dim=1, keepdim=True)
        return cosines.gather(1, best)[:, 0].double()

    def _tiles(self, batch: torch.Tensor) -> Callable[[int, int], Tile]:
        vectors = torch.from_numpy(self._writable_vectors())
        directions = F.normalize(batch, dim=-1).float()
        corrected = self._corrected
        if corrected is not None:

            def corrected_tile(start: int, stop: int) -> Tile:
                rows = vectors[start:stop]
                cosines = directions @ rows[:, : self.dim].T
                scores = corrected.of_cosines(cosines, batch, rows[:, -1])
                return Tile(scores, scores, cosines)

            return corrected_tile
        concentration = torch.linalg.vector_norm(batch, dim=-1, keepdim=True)
        log_normalizers = self._log_normalizers(concentration).float()
        concentration = concentration.float()

        def tile(start: int, stop: int) -> Tile:
            cosines = directions @ vectors[start:stop].T
            return Tile(cosines, self._likelihood(cosines, concentration, log_normalizers))

        return tile

    def _scan_bounds(self, queries: torch.Tensor, smallest_keys: np.ndarray) -> np.ndarray:
        if self._corrected is None:
            return smallest_keys + relative_rounding(self.dim)
        extent = self._summary.lowest_evidence, self._summary.largest_evidence
        return self._corrected.scan_bounds(smallest_keys, queries, *extent)

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

    @property
    def num_closest(self) -> int:
        """Presence goes by the two highest cosines; a few more images tell them in spite of float32's rounding."""
        return 0 if self.calibration is None or len(self) < 2 else min(CLOSEST_IMAGES, len(self))

    def _confidences(
        self, batch: torch.Tensor, log_posterior: np.ndarray, closest: torch.Tensor, prior: float
    ) -> Confidences:
        """
        The two highest cosines are those of the closest images in float64. An image that is not among these, as where
        many are alike, exceeds them by no more than twice the worst rounding of a float32 cosine.
        """
        if self.calibration is None:
            return Confidences()
        confidence = self.calibration.result_confidence(log_posterior[:, 0])
        if closest.shape[1] < 2:
            return Confidences(confidence)
        directions = F.normalize(batch, dim=-1)
        cosines = -np.sort(-self._inner_products(directions, closest.numpy(), normalize=True), axis=1)
        moments = self._summary.mean_and_deviation(directions)
        presence = self.calibration.presence(batch, cosines[:, 0], cosines[:, 1], *moments, len(self), prior)
        return Confidences(confidence, presence)
