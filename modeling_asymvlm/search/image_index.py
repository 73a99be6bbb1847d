"""Images as points, to be searched by texts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from ..calibration.calibration import Calibration
from ..calibration.evidence import EvidenceCorrection
from ..model.modeling_asymvlm import AsymVLMModel
from ..store.embedding_store import EmbeddingSplit
from .corrected_scores import CorrectedScores, check_settings
from .gallery_summary import GallerySummary
from .image_scores import ScoredImages
from .index_storage import Embeddings
from .row_table import Metadata


if TYPE_CHECKING:
    from .lance_index import LanceIndex


class ImageIndex(ScoredImages):
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
        calibration (`Calibration`, *optional*): of a head with this distribution and temperature.
    """

    kind = "image"
    calibration_identity: str | None = None

    def __init__(
        self,
        dim: int,
        *,
        distribution: str,
        normalizer: str = "exact",
        logit_scale: float = 1.0,
        calibration: Calibration | None = None,
    ):
        super().__init__(dim, distribution=distribution, normalizer=normalizer, logit_scale=logit_scale)
        self.calibration = calibration
        if calibration is not None:
            check_settings(calibration, self.law, self.logit_scale)
            self.model_fingerprint = calibration.head
            self._correct(calibration.correction, calibration.identity)

    def _correct(self, correction: EvidenceCorrection, identity: str) -> None:
        """Makes an index that is empty one of corrected scores."""
        self.correction, self.calibration_identity = correction, identity
        self._corrected = CorrectedScores(self.law, self.logit_scale, correction)
        self._set_summary(GallerySummary.empty(self.dim))
        self._faiss = faiss.IndexFlatIP(self.dim + self._extra_columns())

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
        index._take_calibration(calibration, str(path))
        return index

    @classmethod
    def from_lancedb(
        cls, uri: str, table: str, *, model: AsymVLMModel | None = None, calibration: Calibration | None = None
    ) -> "LanceIndex":
        """As [`~index_search.SearchableIndex.from_lancedb`], with a calibration as [`load`]."""
        index = super().from_lancedb(uri, table, model=model)
        template = cast(ImageIndex, index._template)
        template._take_calibration(calibration, uri)
        return index

    def _take_calibration(self, calibration: Calibration | None, place: str) -> None:
        if calibration is not None and calibration.identity != self.calibration_identity:
            made = "with another calibration" if self.calibration_identity else "without a calibration"
            raise ValueError(f"The index at {place!r} was made {made}: build it again with this one.")
        self.calibration = calibration

    def _blank(self) -> Self:
        index = super()._blank()
        index.calibration = self.calibration
        return index

    @classmethod
    def _from_settings(cls, manifest: dict[str, Any]) -> Self:
        index = super()._from_settings(manifest)
        if manifest.get("calibration") is not None:
            correction = EvidenceCorrection(float(manifest["sigma"]), float(manifest["beta"]))
            index._correct(correction, str(manifest["calibration"]))
        return index

    def _more_settings(self) -> dict[str, Any]:
        if self.correction is None:
            return {}
        settings = {"sigma": self.correction.sigma, "beta": self.correction.beta}
        return {**settings, "calibration": self.calibration_identity}

    @property
    def evidence(self) -> np.ndarray | None:
        """e(z) of every image as it is ranked by, float32 of shape `(rows,)`; `None` without a calibration."""
        return None if self.correction is None else self.vectors[:, -1]

    @property
    def bound_column(self) -> np.ndarray | None:
        """
        The last column of [`vectors`], which makes their inner products with [`query_vectors`] grow with the corrected
        score, or with a bound on it: the evidence, float32 of shape `(rows,)`. `None` without a calibration, where
        cosines rank alone.
        """
        return self.evidence

    def add(
        self, embeddings: Embeddings, labels: Sequence[str] | None = None, metadata: Metadata | None = None
    ) -> None:
        """
        Appends images, all of them or, after an error, none.

        Args:
            embeddings (`torch.Tensor` or array of shape `(images, dim)`): of any non-zero length.
            labels (`Sequence[str]`, *optional*): their ids, by default the row numbers.
            metadata (`dict` of columns or `pa.Table`, *optional*):
                One value for each image in every column, to choose rows by with `search(..., where=...)`. Columns may
                be new: rows that lack one have null there.

        Raises:
            TypeError: for labels that are no strings.
            ValueError: for embeddings of another width, NaN or without direction, another number of labels, metadata
                of another number or type, for a memory-mapped index, and for one that was loaded without its
                calibration.
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
            summary = self._summary.plus(vectors.numpy())
        self._append(vectors.numpy(), labels, metadata)
        if self.correction is not None:
            self._set_summary(summary)

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
        return self._bound_queries(texts, self._tangents(texts, None))[0].numpy()

    def _extra_columns(self) -> int:
        return 0 if self.correction is None else 1

    def _embed(self, model: AsymVLMModel, features: torch.Tensor) -> torch.Tensor:
        return model.get_image_features(image_features=features, return_dict=True).pooler_output

    def _remove_rows(self, rows: np.ndarray) -> None:
        if self.correction is None:
            super()._remove_rows(rows)
            return
        counted = rows[rows < self._summary.num_images]
        summary = self._summary.minus(self._writable_vectors()[counted])
        super()._remove_rows(rows)
        self._set_summary(summary)
        if summary.num_removed > len(self):
            self._summarize()

    def _summarize(self) -> None:
        if self.correction is not None:
            self._set_summary(GallerySummary.empty(self.dim).plus(self._writable_vectors()))

    def _row_columns(self) -> dict[str, np.ndarray]:
        return {} if self.correction is None else {"evidence": self._writable_vectors()[:, -1]}

    def _set_columns(self, columns: dict[str, np.ndarray], extent: dict[str, tuple[float, float]]) -> None:
        """The evidence is in the vectors; moments of a part are none of the whole."""
        if self.correction is not None:
            empty = GallerySummary.empty(self.dim)
            self._set_summary(replace(empty, num_images=len(self), evidence_range=np.array(extent["evidence"])))

    def _take_parameters(self, rows: np.ndarray) -> None:
        """There are none of single rows."""

    def _parameters(self) -> dict[str, np.ndarray]:
        return {} if self.correction is None else self._summary.to_parameters()

    def _set_parameters(self, parameters: dict[str, np.ndarray]) -> None:
        if self.correction is not None:
            self._set_summary(GallerySummary.from_parameters(len(self), self.dim, parameters))
