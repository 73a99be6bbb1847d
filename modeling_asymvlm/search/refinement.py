"""Candidates of any engine: their exact scores, and whether they are proven to hold the best.

An exhaustive engine lists, for the vector q of a query, the rows v of largest inner product in float32. No row beyond
its list has a larger one than any row c of the list, and that of c differs from the exact `q'v_c` by at most
`gamma_n |q| |v_c|` (see [`power_spherical_bound`]). So, for every candidate c,

    key of a row beyond  <=  q'v_c + gamma_n |q| |v_c| + addend,

where the addend is that of q (see [`~batch_search.ScoredIndex`]): the smallest right side is the bound. A vector that
differs a little from what this index makes of the query adds `|q - q'| |v|`, which proves less, but nothing wrong.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .batch_search import ScoredIndex, completed
from .certified_top_k import TopK, best_rows
from .power_spherical_bound import UNIT_ROUNDOFF, relative_rounding
from .search_results import BatchResults


FOREIGN = 0.01  # relative difference above which vectors are those of other queries
DISTANCE_OPERATIONS = 4  # roundings where an engine ranks by 1 - q'v, or the like, instead of by q'v


def checked_candidates(rows: npt.ArrayLike, num_queries: int, num_rows: int) -> np.ndarray:
    """Candidates as int64 of shape `(num_queries, candidates)`, or `ValueError`."""
    candidates = np.asarray(rows)
    if candidates.ndim != 2 or len(candidates) != num_queries or not candidates.shape[1]:
        raise ValueError(
            f"candidate_rows has shape {candidates.shape}, but must have ({num_queries}, candidates): at least one "
            f"candidate for each of the {num_queries} queries."
        )
    if candidates.dtype.kind not in "iu":
        raise ValueError(f"candidate_rows are {candidates.dtype}, but must be integers: rows of this index.")
    foreign = (candidates < 0) | (candidates >= num_rows)
    if foreign.any():
        query, place = np.argwhere(foreign)[0]
        raise ValueError(
            f"candidate_rows names row {candidates[query, place]} for query {query}, but the index holds rows 0 to "
            f"{num_rows - 1}. Engines that find too few fill up with -1: ask for fewer, or let them look further."
        )
    ordered = np.sort(candidates, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if repeated.any():
        query = int(repeated.argmax())
        values, counts = np.unique(candidates[query], return_counts=True)
        raise ValueError(
            f"candidate_rows names row {values[counts > 1][0]} more than once for query {query}: give every candidate "
            "once, also where lists of several engines are joined."
        )
    return candidates.astype(np.int64)


def checked_query_vectors(vectors: npt.ArrayLike, num_queries: int, width: int) -> torch.Tensor:
    """Query vectors as float64 of shape `(num_queries, width)`, or `ValueError`."""
    found = np.asarray(vectors)
    if found.shape != (num_queries, width) or not np.isfinite(found).all():
        raise ValueError(
            f"searched_with has shape {found.shape}, but must hold what query_vectors() gave for these queries: "
            f"finite numbers, {(num_queries, width)}."
        )
    return torch.from_numpy(found.astype(np.float64))


@dataclass(frozen=True)
class Refinement:
    """
    Candidates of a batch of queries.

    Attributes:
        index (`ScoredIndex`): whose rows they are.
        batch (`torch.DoubleTensor` of shape `(batch, dim)`): prepared queries.
        candidates (int64, shape `(batch, candidates)`): checked rows.
        searched_with (`torch.DoubleTensor` of shape `(batch, width)`, *optional*):
            vectors for which the candidates are the rows of largest inner product.
        num_rows (`int`): how many rows the engine chose the candidates from.
        first_query (`int`): number of the first query of the batch among all, for messages.
    """

    index: ScoredIndex
    batch: torch.Tensor
    candidates: np.ndarray
    searched_with: torch.Tensor | None
    num_rows: int
    first_query: int = 0

    def results(self, k: int, posterior: bool, prior: float) -> BatchResults:
        """The best `k` candidates of every query, `posterior` as for [`~index_search.SearchableIndex.refine`]."""
        index, batch = self.index, self.batch
        keys = index._keys(batch, np.arange(len(batch)), self.candidates)
        best = TopK(*best_rows(self.candidates, keys, k))
        proven = best.scores[:, -1] > self._bounds()
        scan = index._scan(batch, index.num_closest) if posterior else None
        return completed(index, batch, best, proven, scan=scan, prior=prior)

    def _bounds(self) -> np.ndarray:
        """What no exact key beyond the candidates exceeds, float64 of shape `(batch,)`."""
        if self.candidates.shape[1] == self.num_rows:
            return np.full(len(self.batch), -np.inf)
        if self.searched_with is None:
            return np.full(len(self.batch), np.inf)
        index, vectors = self.index, self.searched_with
        own, addends = index._bound_queries(self.batch, index._touching(self.batch, vectors))
        lengths, own_lengths, differences = (
            torch.linalg.vector_norm(each, dim=1).numpy() for each in (vectors, own.double(), vectors - own.double())
        )
        foreign = np.flatnonzero(differences > FOREIGN * np.maximum(lengths, own_lengths))
        if len(foreign):
            raise ValueError(
                f"searched_with is not what query_vectors() of this index gives for query "
                f"{self.first_query + foreign[0]}: pass the vectors of these queries, in their order, or leave it out."
            )
        products = index._inner_products(vectors, self.candidates, normalize=False)
        rows = index._writable_vectors()
        norms = 1.001 * np.stack([np.linalg.norm(rows[own_rows], axis=1) for own_rows in self.candidates])
        rounding = relative_rounding(vectors.shape[1]) * lengths[:, None] * norms
        rounding += DISTANCE_OPERATIONS * UNIT_ROUNDOFF * (1 + np.abs(products))
        return (products + rounding).min(axis=1) + addends + differences * index._longest_vector
