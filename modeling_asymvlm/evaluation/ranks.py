"""The rank of every caption's image and of every image's captions, exact and in one pass where that can be."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import as_array
from .scores import EmbeddingScores, Scores, check_image_index, score_blocks


# How far the score of a pair may be from the one that a block of another shape gives, relative to the largest. Only
# the time depends on it: where scores differ by more, all are computed again.
TOLERANCE = 1e-5

MAX_UNDECIDED = 2**22  # pairs within the tolerance that are kept until the exact score is known: 80 MB


@dataclass(frozen=True)
class RetrievalRanks:
    """Where each query finds its own counterpart, and what it finds first. See [`rank_both_ways`].

    Attributes:
        text_to_image_rank (`int64`, shape `(texts,)`): rank of the caption's own image among all images; 0 is best.
        text_to_image_top (`int64`, shape `(texts,)`): index of the image that the caption retrieves first.
        image_queries (`int64`, shape `(queries,)`): ascending indices of the images that have captions. An image
            without captions cannot be answered: it stays in the gallery of the captions but is no query itself.
        image_to_text_rank (`int64`, shape `(queries,)`): rank, among all captions, of the best of the image's own.
        image_to_text_top (`int64`, shape `(queries,)`): index of the caption that the image retrieves first.
        num_images_without_captions (`int`): how many images are excluded from `image_queries`.
    """

    text_to_image_rank: npt.NDArray[np.int64]
    text_to_image_top: npt.NDArray[np.int64]
    image_queries: npt.NDArray[np.int64]
    image_to_text_rank: npt.NDArray[np.int64]
    image_to_text_top: npt.NDArray[np.int64]
    num_images_without_captions: int


def rank_both_ways(
    scores: Scores, text_image_index: npt.ArrayLike, *, num_images: int | None = None, tile_size: int | None = None
) -> RetrievalRanks:
    """Rank the images for every caption and the captions for every image.

    The rank of a counterpart is the number of candidates with a higher score, plus those of equal score and lower
    index: the order of a stable sort by descending score.

    Args:
        scores: floating-point array of shape `(texts, images)`, higher is better, infinities allowed;
            [`EmbeddingScores`]; or a function that takes a slice of text rows and returns their scores, shape
            `(rows, images)`. Such a function is called twice for each block and must give the same scores both times.
        text_image_index (integers, shape `(texts,)`): the image that each caption belongs to. Images may have
            several captions or none.
        num_images (`int`, *optional*): number of images; required where `scores` is a function.
        tile_size (`int`, *optional*): text rows in a block, by default as many as give 2^24 scores, 1,024 at most.
            The result does not depend on it; working memory is a few bytes times `tile_size * images`.

    Returns:
        [`RetrievalRanks`].

    Raises:
        ValueError: if a score is NaN, shapes disagree, an index is out of range or `tile_size` is below 1.
    """
    index, num_images = check_image_index(scores, text_image_index, num_images)
    num_texts = len(index)
    columns = np.arange(num_images)
    text_rank, text_top = np.empty(num_texts, np.int64), np.empty(num_texts, np.int64)
    image_top, image_top_score = np.zeros(num_images, np.int64), np.full(num_images, -np.inf)
    image_rank = np.zeros(num_images, np.int64)
    own_parts, num_nan = [], 0

    best, undecided = None, None
    if isinstance(scores, EmbeddingScores):
        undecided = _Undecided(_BestOwn(scores.of_own_images(index), index, num_images))
    elif not callable(scores):
        whole: Any = scores if hasattr(scores, "shape") else np.asarray(scores)
        own = as_array(whole[np.arange(num_texts), index])
        if own.dtype.kind == "f":  # others are refused with the first block
            best = _BestOwn(own, index, num_images)

    for rows, block in score_blocks(scores, num_texts, num_images, tile_size):
        own_column = index[rows]
        own = block[np.arange(len(block)), own_column]
        own_parts.append(own)
        text_rank[rows] = _better_images(block, own, own_column, columns)
        text_top[rows] = block.argmax(axis=1)
        with_nan = np.isnan(block[np.arange(len(block)), text_top[rows]])  # argmax takes NaN for the highest
        num_nan += int(np.count_nonzero(np.isnan(block[with_nan])))
        block_top_score = block.max(axis=0)
        higher = np.flatnonzero(block_top_score > image_top_score)
        image_top[higher] = rows.start + block[:, higher].argmax(axis=0)
        image_top_score[higher] = block_top_score[higher]
        if best is not None:
            image_rank += best.better_texts(block, rows.start)
        elif undecided is not None:
            undecided.add(block, rows.start)
    if num_nan:
        raise ValueError(
            f"{num_nan} of {num_texts * num_images} scores are NaN; a NaN has no rank. Allowed are numbers and "
            "infinities. Look for NaN in the embeddings."
        )

    if best is None:
        own_score = np.concatenate(own_parts)
        best = _BestOwn(own_score, index, num_images)
        if undecided is not None and undecided.decides(best):
            image_rank = undecided.better_texts(best)
        else:
            image_rank = _count_again(scores, index, own_score, best, tile_size)
    return RetrievalRanks(
        text_to_image_rank=text_rank,
        text_to_image_top=text_top,
        image_queries=best.queries,
        image_to_text_rank=image_rank[best.queries],
        image_to_text_top=image_top[best.queries],
        num_images_without_captions=num_images - best.queries.size,
    )


def _better_images(block: Any, own: Any, own_column: Any, columns: Any) -> npt.NDArray[np.int64]:
    above = _count_rows(block > own[:, None])
    tied = np.flatnonzero(_count_rows(block >= own[:, None]) > above + 1)  # with another image than the own
    tied_before = (block[tied] == own[tied, None]) & (columns < own_column[tied, None])
    above[tied] += np.count_nonzero(tied_before, axis=1)
    return above


def _count_rows(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    # One row at a time is faster: along an axis NumPy widens every boolean to eight bytes first.
    return np.array([np.count_nonzero(row) for row in mask])


def _count_columns(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8)  # a block has at most 255 rows


class _BestOwn:
    """The best of each image's own captions. Images without captions have the score +inf, which nothing exceeds."""

    def __init__(self, own_score: npt.NDArray[np.floating], index: npt.NDArray[np.int64], num_images: int):
        best_first = np.lexsort((-own_score, index))  # stable: of equal captions of an image the first comes first
        self.queries, first = np.unique(index[best_first], return_index=True)
        self.text = np.zeros(num_images, np.int64)
        self.text[self.queries] = best_first[first]
        self.score = np.full(num_images, np.inf, dtype=own_score.dtype)
        self.score[self.queries] = own_score[self.text[self.queries]]

    def better_texts(self, block: npt.NDArray[np.floating], first_row: int) -> npt.NDArray[np.int64]:
        """How many captions of a block come before the best own one, for each image."""
        above = _count_columns(block > self.score).astype(np.int64)
        tied = np.flatnonzero(_count_columns(block >= self.score) > above)
        before = np.arange(first_row, first_row + len(block))[:, None] < self.text[tied]
        above[tied] += np.count_nonzero((block[:, tied] == self.score[tied]) & before, axis=0)
        return above


class _Undecided:
    """
    Counts the captions above each image's best own one in one pass, while its score is known up to a tolerance only:
    pairs within the tolerance are kept, and counted when the score is known.
    """

    def __init__(self, approximate: _BestOwn):
        finite = np.abs(approximate.score[np.isfinite(approximate.score)])
        tolerance = TOLERANCE * finite.max(initial=0)
        self.lowest, self.highest = approximate.score - tolerance, approximate.score + tolerance
        self.above = np.zeros(len(approximate.score), np.int64)
        self.pairs: list[tuple[Any, Any, Any]] = []  # rows, columns and scores
        self.num_pairs = 0

    def add(self, block: npt.NDArray[np.floating], first_row: int) -> None:
        if self.num_pairs > MAX_UNDECIDED:
            return
        above = _count_columns(block > self.highest)
        self.above += above
        columns = np.flatnonzero(_count_columns(block >= self.lowest) > above)
        part = block[:, columns]
        row, column = np.nonzero((part >= self.lowest[columns]) & (part <= self.highest[columns]))
        self.pairs.append((first_row + row, columns[column], part[row, column]))
        self.num_pairs += len(row)

    def decides(self, best: _BestOwn) -> bool:
        """Whether every score was within the tolerance, and no pair was left out."""
        within = (self.lowest <= best.score) & (best.score <= self.highest)
        return bool(within.all()) and self.num_pairs <= MAX_UNDECIDED

    def better_texts(self, best: _BestOwn) -> npt.NDArray[np.int64]:
        row, column, score = (np.concatenate(parts) for parts in zip(*self.pairs, strict=True))
        before = (score > best.score[column]) | ((score == best.score[column]) & (row < best.text[column]))
        return self.above + np.bincount(column[before], minlength=len(self.above))


def _count_again(scores: Scores, index: Any, own_score: Any, best: _BestOwn, tile_size: int | None) -> Any:
    image_rank = np.zeros(len(best.score), np.int64)
    for rows, block in score_blocks(scores, len(index), len(best.score), tile_size):
        if not np.array_equal(block[np.arange(len(block)), index[rows]], own_score[rows]):
            raise ValueError(
                f"`scores` gave other values for rows {rows.start} to {rows.stop - 1} when called again; exact ranks "
                "need the same values each time. Turn off dropout and sampling, or pass the whole array."
            )
        image_rank += best.better_texts(block, rows.start)
    return image_rank
