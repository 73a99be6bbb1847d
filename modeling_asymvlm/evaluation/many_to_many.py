"""Retrieval where a query has any number of right answers, as in ECCV Caption (Chun et al., ECCV 2022)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import as_array
from .recall import check_ks
from .scores import EmbeddingScores, Scores, check_shape, score_blocks


@dataclass(frozen=True)
class TopK:
    """The first results of every query, best first; see [`top_k_both_ways`].

    Attributes:
        text_to_image (`int64`, shape `(texts, min(k, images))`): images of each caption.
        image_to_text (`int64`, shape `(images, min(k, texts))`): captions of each image.
    """

    text_to_image: npt.NDArray[np.int64]
    image_to_text: npt.NDArray[np.int64]


def top_k_both_ways(
    scores: Scores,
    k: int,
    *,
    num_texts: int | None = None,
    num_images: int | None = None,
    tile_size: int | None = None,
) -> TopK:
    """The first `k` results of every caption and of every image, in one pass; equal scores in the order of index.

    Args:
        scores: array of shape `(texts, images)`, [`EmbeddingScores`], or a function of a slice of text rows, as for
            [`rank_both_ways`]; it is called once for each block.
        k (`int`): number of results, at least 1.
        num_texts, num_images (`int`, *optional*): required where `scores` is a function.
        tile_size (`int`, *optional*): text rows in a block. The result does not depend on it.

    Raises:
        ValueError: if `k` is below 1, a score is NaN or a number of rows or columns is missing.
    """
    check_ks((k,))
    if num_texts is None:
        if callable(scores) and not isinstance(scores, EmbeddingScores):
            raise ValueError("`num_texts` is None; where `scores` is a function it must be the number of its rows.")
        num_texts = scores.shape[0] if isinstance(scores, EmbeddingScores) else len(scores)  # type: ignore[arg-type]
    num_images = check_shape(scores, num_texts, num_images)
    by_text = np.empty((num_texts, min(k, num_images)), np.int64)
    by_image = np.zeros((num_images, 0), np.int64)
    by_image_score = np.zeros((num_images, 0))
    for rows, block in score_blocks(scores, num_texts, num_images, tile_size):
        if np.isnan(block).any():
            raise ValueError(
                f"scores of rows {rows.start} to {rows.stop - 1} are NaN; a NaN has no rank. Look for NaN in the "
                "embeddings."
            )
        by_text[rows] = _first(block, k)
        if by_image.shape[1] < k:
            columns = np.arange(num_images)
        else:  # an equal score comes later in the order of index, so that only a higher one matters
            columns = np.flatnonzero(block.max(axis=0) > by_image_score[:, -1])
        # The captions found before stand in front: a stable sort keeps the order of index among equal scores.
        found_scores = np.concatenate([by_image_score[columns], block[:, columns].T], axis=1)
        new = np.broadcast_to(np.arange(rows.start, rows.stop), (len(columns), len(block)))
        found = np.concatenate([by_image[columns], new], axis=1)
        first = _first(found_scores, k)
        if by_image.shape[1] < k:
            by_image, by_image_score = np.take_along_axis(found, first, 1), np.take_along_axis(found_scores, first, 1)
        else:
            by_image[columns] = np.take_along_axis(found, first, 1)
            by_image_score[columns] = np.take_along_axis(found_scores, first, 1)
    return TopK(text_to_image=by_text, image_to_text=by_image)


def _first(scores: npt.NDArray[np.floating], k: int) -> npt.NDArray[np.int64]:
    """The `k` highest of each row in the order of a stable descending sort."""
    width = scores.shape[1]
    if k >= width:
        return np.argsort(-scores, axis=1, kind="stable")
    columns = np.argpartition(scores, width - k, axis=1)[:, width - k :]
    lowest = np.take_along_axis(scores, columns, axis=1).min(axis=1)
    # More candidates than places: partitioning chose any of the equal ones, the order of index decides.
    for row in np.flatnonzero(np.count_nonzero(scores >= lowest[:, None], axis=1) > k):
        columns[row] = np.argsort(-scores[row], kind="stable")[:k]
    columns.sort(axis=1)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def many_to_many_metrics(
    top: npt.ArrayLike, positives: Iterable[Sequence[int]], *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall, R-Precision and mAP@R with any number of right answers a query.

    With R right answers of a query: R-Precision is the share of right ones among its first R results; mAP@R is
    1/R · Σ_{i ≤ R} P(i) · rel(i), with P(i) the precision of the first i results and rel(i) whether the i-th is right
    (Musgrave et al., ECCV 2020; Chun et al., ECCV 2022). Both are means over the queries.

    Args:
        top (integers, shape `(queries, k)`): results of each query, best first, as [`top_k_both_ways`] gives them.
        positives (`Iterable[Sequence[int]]`): the right answers of each query, at least one and at most `k`, in the
            numbers of `top`. Repeated ones count once.
        ks (`Sequence[int]`): where to take the recall, at most `k`.

    Returns:
        `recall@k` (share of queries with a right answer among the first k), `r_precision`, `map_at_r`, fractions in
        [0, 1], and `num_queries`.

    Raises:
        ValueError: if a query has no right answer, or more than `top` has results, or the numbers of queries differ.
    """
    results = as_array(top)
    check_ks(ks)
    answers = [np.unique(np.asarray(of_query, dtype=np.int64)) for of_query in positives]
    if results.ndim != 2 or results.dtype.kind not in "iu" or len(results) != len(answers) or not len(answers):
        raise ValueError(
            f"`top` has shape {results.shape} and dtype {results.dtype} for {len(answers)} lists of right answers; it "
            "must hold integers, a row for each query."
        )
    count = np.array([len(of_query) for of_query in answers])
    most, width = max(int(count.max()), max(ks)), results.shape[1]
    if count.min() < 1:
        raise ValueError(f"query {count.argmin()} has no right answer; leave such queries out.")
    if most > width:
        raise ValueError(f"`top` has {width} results of each query; {most} are needed. Retrieve more.")
    hit = np.array([np.isin(row, of_query) for row, of_query in zip(results, answers, strict=True)])
    precision = np.cumsum(hit, axis=1) / np.arange(1, width + 1)
    average = np.cumsum(precision * hit, axis=1)
    query, last = np.arange(len(answers)), count - 1
    return {
        **{f"recall@{k}": float(hit[:, :k].any(axis=1).mean()) for k in ks},
        "r_precision": float(precision[query, last].mean()),
        "map_at_r": float((average[query, last] / count).mean()),
        "num_queries": len(answers),
    }
