"""The search of one batch of queries: who proposes candidates, what is exact of them, and what comes out."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from .certified_top_k import Proposals, TopK, certified_top_k
from .faiss_access import matrix_products
from .gallery_scan import GalleryScan, Tile, scan_gallery
from .index_storage import Embeddings
from .living_index import LivingIndex
from .search_results import BatchResults, Confidences


ELEMENTS_AT_A_TIME = 2**22  # of gathered float64 vectors


class ScoredIndex(LivingIndex):
    """
    What a search asks of an index. Its rows are ranked by keys: the scores themselves, or what grows with them for one
    query. A batch holds prepared queries, float64 of shape `(batch, dim)`, which are referred to by their numbers.
    """

    _sample: torch.Tensor | None = None  # vectors of some rows, which tell where the tangents of a first search touch

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
    def _tangents(self, batch: torch.Tensor, last: np.ndarray | None) -> torch.Tensor:
        """
        Cosines, float64 of shape `(batch,)`, where the bounds on the keys of a batch are to touch: those of the rows
        `last`, one for each query, or of typical best ones. Bounds that are the keys themselves go by none.
        """

    @abstractmethod
    def _bound_queries(self, batch: torch.Tensor, tangents: torch.Tensor) -> tuple[torch.Tensor, float | np.ndarray]:
        """float32 vectors for FAISS, and what is to be added to their inner products for a bound on the keys."""

    @abstractmethod
    def _touching(self, batch: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The tangents that vectors `(batch, width)` of [`_bound_queries`] were made with."""

    @property
    @abstractmethod
    def _longest_vector(self) -> float:
        """No row has a greater length."""

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

    def _inner_products(self, directions: torch.Tensor, rows: np.ndarray, *, normalize: bool) -> np.ndarray:
        """
        float64 `(q, c)` of directions `(q, n)` with the first n columns of rows `(q, c)`; equal vectors give equal
        numbers.
        """
        products, width = np.empty(rows.shape), directions.shape[1]
        step = max(1, ELEMENTS_AT_A_TIME // (rows.shape[1] * width))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            vectors = torch.from_numpy(self._writable_vectors()[rows[some]][..., :width]).double()
            vectors = F.normalize(vectors, dim=-1) if normalize else vectors
            products[some] = (vectors * directions[some, None]).sum(dim=-1).numpy()
        return products


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


def completed(
    index: ScoredIndex,
    batch: torch.Tensor,
    best: TopK,
    proven: np.ndarray,
    *,
    scan: GalleryScan | None,
    prior: float,
) -> BatchResults:
    """
    Results of rows and their exact keys: scores, uncertainties and, with the scan of all rows, probabilities.

    Args:
        index (`ScoredIndex`): what was searched.
        batch (`torch.DoubleTensor` of shape `(batch, dim)`): prepared queries.
        best (`TopK`): the rows, and their keys as scores.
        proven (bool, shape `(batch,)`): see [`~search_results.SearchResults`].
        scan (`GalleryScan`, *optional*): of all rows, with sums and `index.num_closest`; none where no posterior is
            wanted.
        prior (`float`): how often the answer is in the gallery.
    """
    rows, keys = best
    scores = index._scores(batch, np.arange(len(batch)), keys)
    uncertainty = index._uncertainty(batch, rows)
    if scan is None:
        return BatchResults(rows, scores, uncertainty, proven, None, Confidences())
    log_posterior = index.posterior_scale * scores - scan.log_sums.numpy()[:, None]
    confidences = index._confidences(batch, log_posterior, scan.closest, prior)
    return BatchResults(rows, scores, uncertainty, proven, log_posterior, confidences)


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
        best = certified_top_k(len(batch), self.plan.gallery, self.plan.k, self._proposals, self._exact_keys)
        if self.plan.posterior and self.scan is None:
            self.scan = index._scan(batch, index.num_closest)
        proven = np.full(len(batch), self.plan.approximate is None)
        return completed(index, batch, best, proven, scan=self.scan, prior=self.plan.prior)

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
        batch = self.batch[numbers]
        vectors, slack = self.index._bound_queries(batch, self.index._tangents(batch, last_rows))
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
