"""The search of one batch of queries: who proposes candidates, what is exact of them, and what comes out."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import faiss
import numpy as np
import torch

from .certified_top_k import Proposals, certified_top_k
from .faiss_access import matrix_products
from .gallery_scan import GalleryScan, Tile, scan_gallery
from .index_storage import Embeddings, FlatIndex


class Confidences(NamedTuple):
    """What a calibration says of a batch, float64 of shape `(batch,)`; see [`~index_search.SearchResults`]."""

    confidence: np.ndarray | None = None
    presence: np.ndarray | None = None


class ScoredIndex(FlatIndex):
    """
    What a search asks of an index. Its rows are ranked by keys: the scores themselves, or what grows with them for one
    query. A batch holds prepared queries, float64 of shape `(batch, dim)`, which are referred to by their numbers.
    """

    @property
    def posterior_scale(self) -> float:
        """Inverse temperature of the posterior: it is the softmax of this times the score."""
        return self.logit_scale

    @property
    def num_closest(self) -> int:
        """How many images of largest cosine [`_confidences`] takes of a scan of all rows."""
        return 0

    @abstractmethod
    def _prepare(self, queries: Embeddings) -> torch.Tensor:
        """Checked queries in float64, `(queries, dim)`."""

    @abstractmethod
    def _faiss_queries(
        self, batch: torch.Tensor, queries: np.ndarray, last: np.ndarray | None
    ) -> tuple[torch.Tensor, float | np.ndarray]:
        """
        float32 vectors for FAISS, and what is to be added to their inner products for a bound on the keys, which is to
        be close for the rows `last`, one for each query.
        """

    @abstractmethod
    def _tiles(self, batch: torch.Tensor) -> Callable[[int, int], Tile]:
        """What [`scan_gallery`] takes."""

    @abstractmethod
    def _scan_bounds(self, queries: torch.Tensor, smallest_keys: np.ndarray) -> np.ndarray:
        """What no exact key of these queries exceeds whose float32 key in a scan is at most this."""

    @abstractmethod
    def _keys(self, batch: torch.Tensor, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Exact keys of rows `(q, c)` for the queries `(q,)` of the batch."""

    @abstractmethod
    def _scores(self, batch: torch.Tensor, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Scores of keys `(q, c)`."""

    @abstractmethod
    def _uncertainty(self, batch: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        """1 / kappa for the rows `(q, c)` of all queries of the batch."""

    def _confidences(
        self, batch: torch.Tensor, log_posterior: np.ndarray, closest: torch.Tensor, prior: float
    ) -> Confidences:
        """
        Of the results `(batch, k)` of a batch, with the images of largest cosine `(batch, num_closest)` that a scan
        found; none without a calibration.
        """
        return Confidences()

    @abstractmethod
    def _scan(self, batch: torch.Tensor, num_closest: int = 0) -> GalleryScan:
        """The sums of the posterior over the whole index, without a list of rows."""


@dataclass(frozen=True)
class SearchPlan:
    """
    What is asked of every batch, checked.

    Attributes:
        k (`int`): results per query, at most as many as rows are allowed.
        gallery (int64, shape `(allowed,)`): the rows that may be listed, ascending.
        method (`str`): `"bound"` or `"scan"`.
        posterior (`bool`): whether the results' probabilities are wanted.
        approximate (`faiss.Index`, *optional*): where candidates come from, without a proof.
        prior (`float`): how often the answer is in the gallery.
    """

    k: int
    gallery: np.ndarray
    method: str
    posterior: bool
    approximate: faiss.Index | None
    prior: float


class BatchResults(NamedTuple):
    """The best rows of each query of a batch, of shape `(batch, k)`; see [`~index_search.SearchResults`]."""

    rows: np.ndarray
    scores: np.ndarray
    uncertainty: np.ndarray
    log_posterior: np.ndarray | None
    confidences: Confidences


@dataclass
class BatchSearch:
    """
    The search of a batch in an index.

    Attributes:
        index (`ScoredIndex`): what is searched.
        batch (`torch.DoubleTensor` of shape `(batch, dim)`): prepared queries.
        plan (`SearchPlan`): what is asked.
        scan (`GalleryScan`, *optional*): that of all rows for all queries, where it was made by the way.
    """

    index: ScoredIndex
    batch: torch.Tensor
    plan: SearchPlan
    scan: GalleryScan | None = field(default=None, init=False)

    def results(self) -> BatchResults:
        """Candidates, widened until their exact keys are proven to hold the best ones, with scores and posteriors."""
        index, batch = self.index, self.batch
        rows, keys = certified_top_k(len(batch), self.plan.gallery, self.plan.k, self._proposals, self._exact_keys)
        scores = index._scores(batch, np.arange(len(batch)), keys)
        uncertainty = index._uncertainty(batch, rows)
        if not self.plan.posterior:
            return BatchResults(rows, scores, uncertainty, None, Confidences())
        scan = index._scan(batch, index.num_closest) if self.scan is None else self.scan
        log_posterior = index.posterior_scale * scores - scan.log_sums.numpy()[:, None]
        confidences = index._confidences(batch, log_posterior, scan.closest, self.plan.prior)
        return BatchResults(rows, scores, uncertainty, log_posterior, confidences)

    def _proposals(self, numbers: np.ndarray, count: int, last_rows: np.ndarray | None) -> Proposals:
        """See [`~certified_top_k.Propose`]."""
        if self.plan.method == "scan":
            proposals = self._by_scan(numbers, count)
        else:
            proposals = self._by_faiss(numbers, count, last_rows)
        if count == len(self.plan.gallery) or self.plan.approximate is not None:
            return proposals._replace(bounds=np.full(len(numbers), -np.inf))
        return proposals

    def _by_scan(self, numbers: np.ndarray, count: int) -> Proposals:
        """The first scan is of all queries, and gives the sums of the posterior in the same pass."""
        takes_sums = self.plan.posterior and self.scan is None
        found = scan_gallery(
            self.index._tiles(self.batch[numbers]),
            len(numbers),
            len(self.index),
            count=count,
            logit_scale=self.index.posterior_scale if takes_sums else None,
            allowed=self._allowed(),
            num_closest=self.index.num_closest if takes_sums else 0,
        )
        if takes_sums:
            self.scan = found
        return Proposals(
            found.rows.numpy(), self.index._scan_bounds(self.batch[numbers], found.keys.double().numpy().min(axis=1))
        )

    def _by_faiss(self, numbers: np.ndarray, count: int, last_rows: np.ndarray | None) -> Proposals:
        searched = self.index._faiss if self.plan.approximate is None else self.plan.approximate
        vectors, slack = self.index._faiss_queries(self.batch, numbers, last_rows)
        with matrix_products(len(vectors)):
            keys, rows = searched.search(vectors.numpy(), count)
        if rows[:, self.plan.k - 1].min() < 0:  # FAISS fills up with -1
            raise ValueError(
                f"The approximate index found fewer than {self.plan.k} results for a query: let it look further, as "
                "by a higher nprobe or efSearch."
            )
        return Proposals(rows, keys[:, -1].astype(np.float64) + slack)

    def _exact_keys(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See [`~certified_top_k.ExactScores`]; -inf where FAISS filled up."""
        return np.where(rows < 0, -np.inf, self.index._keys(self.batch, numbers, np.maximum(rows, 0)))

    def _allowed(self) -> torch.Tensor | None:
        """Which rows may be listed, bool of shape `(rows,)`; `None` for all."""
        if len(self.plan.gallery) == len(self.index):
            return None
        allowed = torch.zeros(len(self.index), dtype=torch.bool)
        allowed[torch.from_numpy(self.plan.gallery)] = True
        return allowed
