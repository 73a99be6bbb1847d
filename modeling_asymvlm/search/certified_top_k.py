"""The first k of a gallery in float64, found with float32 proposals and proven for every query."""

from typing import NamedTuple, Protocol

import numpy as np


FIRST_CANDIDATES, CANDIDATES_PER_RESULT = 16, 2
GROWTH = 8  # of the number of candidates at the second attempt
ROWS_PER_PASS = 16_384  # of the gallery in an exhaustive search


class Proposals(NamedTuple):
    """
    Candidates of `q` queries.

    Attributes:
        rows (int64, shape `(q, count)`): the gallery's most promising rows.
        bounds (float64, shape `(q,)`): no exact score of a row beyond them exceeds it; -inf where there is none.
    """

    rows: np.ndarray
    bounds: np.ndarray


class TopK(NamedTuple):
    """
    The best rows of every query, best first.

    Attributes:
        rows (int64, shape `(num_queries, k)`): rows of the gallery.
        scores (float64, shape `(num_queries, k)`): their exact scores.
    """

    rows: np.ndarray
    scores: np.ndarray


class Propose(Protocol):
    """
    `(numbers, count, last_rows) -> Proposals`: `count` rows for each of the queries of these numbers, shape `(q,)`.
    `last_rows`, shape `(q,)`, are the k-th best known so far, `None` at first: what is to be told from the others.
    """

    def __call__(self, numbers: np.ndarray, count: int, last_rows: np.ndarray | None, /) -> Proposals: ...


class ExactScores(Protocol):
    """`(numbers, rows) -> scores`: float64, `(q, c)`, of gallery rows `(q, c)` for the queries of numbers `(q,)`."""

    def __call__(self, numbers: np.ndarray, rows: np.ndarray, /) -> np.ndarray: ...


def certified_top_k(
    num_queries: int, gallery: np.ndarray, k: int, propose: Propose, exact_scores: ExactScores
) -> TopK:
    """
    The `k` rows of highest float64 score for every query; of equal scores the lower row comes first.

    The candidates of `propose` are scored in float64. A query is done when its k-th exact score exceeds the bound on
    all rows that are not candidates, which proves its result. The others are tried once more with more candidates and
    what was learnt, and the rest, as with more equal scores than candidates, is searched exhaustively in float64.

    Args:
        num_queries (`int`): number of queries.
        gallery (`np.ndarray` of shape `(rows,)`): the rows that may be listed, ascending.
        k (`int`): results per query, from 1 to the size of the gallery.
        propose, exact_scores: see [`Propose`] and [`ExactScores`].
    """
    rows, scores = np.empty((num_queries, k), np.int64), np.empty((num_queries, k))
    pending, last_rows = np.arange(num_queries), None
    for count in (
        CANDIDATES_PER_RESULT * k + FIRST_CANDIDATES,
        GROWTH * (CANDIDATES_PER_RESULT * k + FIRST_CANDIDATES),
    ):
        candidates, bounds = propose(pending, min(count, len(gallery)), last_rows)
        rows[pending], scores[pending] = best_rows(candidates, exact_scores(pending, candidates), k)
        unproven = scores[pending, -1] <= bounds
        pending = pending[unproven]
        if not pending.size:
            return TopK(rows, scores)
        last_rows = rows[pending, -1]
    for query in pending.tolist():
        rows[query], scores[query] = _exhaustive(query, gallery, k, exact_scores)
    return TopK(rows, scores)


def best_rows(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of rows `(q, c)` and their scores, best first; of equal scores the lower row comes first."""
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return np.take_along_axis(rows, order, -1), np.take_along_axis(scores, order, -1)


def _exhaustive(query: int, gallery: np.ndarray, k: int, exact_scores: ExactScores) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = np.empty((1, 0), np.int64), np.empty((1, 0))
    for start in range(0, len(gallery), ROWS_PER_PASS):
        chunk = gallery[None, start : start + ROWS_PER_PASS]
        found = exact_scores(np.array([query]), chunk)
        rows, scores = best_rows(np.concatenate([rows, chunk], 1), np.concatenate([scores, found], 1), k)
    return rows[0], scores[0]
