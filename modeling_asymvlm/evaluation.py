"""Retrieval and uncertainty metrics as plain functions of arrays.

Every array argument may be a NumPy array, a sequence or a torch tensor; nothing here knows a model. Recalls are
fractions in [0, 1], ranks are 0-based, and every result is exact: blocks bound the memory, never the answer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


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


Scores = npt.ArrayLike | Callable[[slice], npt.ArrayLike]


def rank_both_ways(
    scores: Scores, text_image_index: npt.ArrayLike, *, num_images: int | None = None, tile_size: int = 1024
) -> RetrievalRanks:
    """Rank the images for every caption and the captions for every image.

    The rank of a counterpart is the number of candidates with a higher score, plus those of equal score and lower
    index: the order of a stable sort by descending score.

    Args:
        scores: floating-point array of shape `(texts, images)`, higher is better, infinities allowed; or a function
            that takes a slice of text rows and returns their scores, shape `(rows, images)`. The function is called
            twice for each block and must give the same scores both times; the whole matrix is never held.
        text_image_index (integers, shape `(texts,)`): the image that each caption belongs to. Images may have
            several captions or none.
        num_images (`int`, *optional*): number of images; required where `scores` is a function.
        tile_size (`int`, defaults to 1024): text rows in a block. The result does not depend on it; working memory
            is a few bytes times `tile_size * images`.

    Returns:
        [`RetrievalRanks`].

    Raises:
        ValueError: if a score is NaN, shapes disagree, an index is out of range or `tile_size` is below 1.
    """
    index, num_images = _image_index(scores, text_image_index, num_images)
    num_texts = len(index)
    if tile_size < 1:
        raise ValueError(f"`tile_size` is {tile_size}; it must be at least 1. Give the number of text rows per block.")

    columns = np.arange(num_images)
    text_rank, text_top = np.empty(num_texts, np.int64), np.empty(num_texts, np.int64)
    column_top, column_top_score = np.zeros(num_images, np.int64), np.full(num_images, -np.inf)
    own_parts, num_nan = [], 0
    for rows, block in _blocks(scores, num_texts, num_images, tile_size):
        num_nan += int(np.count_nonzero(np.isnan(block)))
        own_column = index[rows]
        own = block[np.arange(len(block)), own_column]
        own_parts.append(own)
        tied_before = (block == own[:, None]) & (columns < own_column[:, None])
        text_rank[rows] = np.count_nonzero(block > own[:, None], axis=1) + np.count_nonzero(tied_before, axis=1)
        text_top[rows] = block.argmax(axis=1)
        block_top = block.argmax(axis=0)
        block_top_score = block[block_top, columns]
        higher = block_top_score > column_top_score
        column_top = np.where(higher, rows.start + block_top, column_top)
        column_top_score = np.where(higher, block_top_score, column_top_score)
    if num_nan:
        raise ValueError(
            f"{num_nan} of {num_texts * num_images} scores are NaN; a NaN has no rank. Allowed are numbers and "
            "infinities. Look for NaN in the embeddings."
        )

    own_score = np.concatenate(own_parts)
    best_first = np.lexsort((-own_score, index))  # stable: of equal captions of an image the first comes first
    queries, first = np.unique(index[best_first], return_index=True)
    best_text = np.zeros(num_images, np.int64)
    best_text[queries] = best_first[first]
    best_score = own_score[best_text]
    image_rank = np.zeros(num_images, np.int64)
    for rows, block in _blocks(scores, num_texts, num_images, tile_size):
        if not np.array_equal(block[np.arange(len(block)), index[rows]], own_score[rows]):
            raise ValueError(
                f"`scores` gave other values for rows {rows.start} to {rows.stop - 1} when called again; exact ranks "
                "need the same values each time. Turn off dropout and sampling, or pass the whole array."
            )
        tied_before = (block == best_score) & (np.arange(rows.start, rows.stop)[:, None] < best_text)
        image_rank += np.count_nonzero(block > best_score, axis=0) + np.count_nonzero(tied_before, axis=0)
    return RetrievalRanks(
        text_to_image_rank=text_rank,
        text_to_image_top=text_top,
        image_queries=queries,
        image_to_text_rank=image_rank[queries],
        image_to_text_top=column_top[queries],
        num_images_without_captions=num_images - queries.size,
    )


def recall_at_k(ranks: RetrievalRanks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of the queries whose counterpart is among the first `k` results.

    An image counts as answered when any of its own captions is among the first `k`. Where `k` reaches the size of
    the gallery the recall is 1.

    Returns:
        `text_to_image_recall@k` and `image_to_text_recall@k` for each `k`, fractions in [0, 1].

    Raises:
        ValueError: if a `k` is below 1.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"`ks` is {tuple(ks)}; every k must be at least 1, as in (1, 5, 10).")
    text = {f"text_to_image_recall@{k}": float(np.mean(ranks.text_to_image_rank < k)) for k in ks}
    image = {f"image_to_text_recall@{k}": float(np.mean(ranks.image_to_text_rank < k)) for k in ks}
    return text | image


def retrieval_metrics(
    scores: Scores,
    text_image_index: npt.ArrayLike,
    *,
    ks: Sequence[int] = (1, 5, 10),
    num_images: int | None = None,
    tile_size: int = 1024,
) -> dict[str, float]:
    """[`recall_at_k`] of [`rank_both_ways`], for callers that need no ranks. Arguments and errors are theirs."""
    return recall_at_k(rank_both_ways(scores, text_image_index, num_images=num_images, tile_size=tile_size), ks)


def uncertainty_metrics(uncertainty: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = 10) -> dict[str, Any]:
    """How well uncertainty foretells retrieval errors: S, R² and -S·R² of ProbVLM (Upadhyay et al., ICCV 2023).

    The queries are sorted by ascending uncertainty (stable: equal ones stay in the order given) and cut into
    `num_bins` levels of equal count; where the count does not divide, the first levels hold one more.

    Args:
        uncertainty (shape `(queries,)`): higher is less certain, in any unit: only the order decides the bins.
        correct (shape `(queries,)`): whether the first result is right (`rank == 0`), or its probability of being
            right where the data let it be known, in [0, 1].
        num_bins (`int`, defaults to 10): number of levels, at least 2.

    Returns:
        `spearman`: S, Spearman correlation of level and R@1 of the level, in [-1, 1], ideal -1;
        `r_squared`: R² of the least-squares straight line of R@1 on level, in [0, 1], ideal 1;
        `neg_spearman_r_squared`: -S·R², in [-1, 1], ideal 1;
        `num_bins`; and for each level, most certain first, the lists `bin_recall` (R@1, a fraction),
        `bin_uncertainty` (mean) and `bin_count`.
        S, R² and -S·R² are NaN where every level has the same R@1, and where every query has the same uncertainty
        (the levels would then only tell the order of the data). They measure a trend, not its size.

    Raises:
        ValueError: on NaN uncertainty, shapes that disagree, `correct` outside [0, 1], `num_bins` below 2 or above
            the number of queries.
    """
    uncertainty, hits = _vectors(uncertainty=uncertainty, correct=correct)
    outside = hits[(hits < 0) | (hits > 1)]
    if outside.size:
        raise ValueError(
            f"`correct` contains {outside[0]}; allowed are booleans and probabilities from 0 to 1. Pass `rank == 0`."
        )
    if not 2 <= num_bins <= len(hits):
        raise ValueError(
            f"`num_bins` is {num_bins} for {len(hits)} queries; it must be from 2 to the number of queries. "
            "Use fewer bins or more queries."
        )
    bins = np.array_split(np.argsort(uncertainty, kind="stable"), num_bins)
    recall = np.array([hits[members].mean() for members in bins])
    level = np.arange(1.0, num_bins + 1)
    ordered = uncertainty.min() < uncertainty.max()
    spearman = _spearman(level, recall) if ordered else float("nan")
    r_squared = _pearson(level, recall) ** 2 if ordered else float("nan")
    return {
        "spearman": spearman,
        "r_squared": r_squared,
        "neg_spearman_r_squared": -spearman * r_squared,
        "num_bins": num_bins,
        "bin_recall": recall.tolist(),
        "bin_uncertainty": [float(uncertainty[members].mean()) for members in bins],
        "bin_count": [len(members) for members in bins],
    }


def retrieval_uncertainty_metrics(
    ranks: RetrievalRanks,
    text_uncertainty: npt.ArrayLike,
    image_uncertainty: npt.ArrayLike | None = None,
    *,
    num_bins: int = 10,
) -> dict[str, dict[str, Any]]:
    """[`uncertainty_metrics`] of both directions of retrieval, under both conventions for image -> text.

    Args:
        ranks: from [`rank_both_ways`].
        text_uncertainty (shape `(texts,)`): uncertainty of each caption.
        image_uncertainty (shape `(images,)`, *optional*): uncertainty of each image, where the method has one.
        num_bins (`int`, defaults to 10): number of levels.

    Returns:
        `text_to_image`: captions binned by their own uncertainty;
        `image_to_text_by_retrieved_caption`: image queries binned by the uncertainty of the caption that they
        retrieve first, the convention for methods whose texts alone are uncertain;
        `image_to_text_by_image`, where `image_uncertainty` is given: image queries binned by their own uncertainty.

    Raises:
        ValueError: if a shape disagrees with `ranks`, and as [`uncertainty_metrics`].
    """
    counts = {"text": len(ranks.text_to_image_rank)}
    counts["image"] = len(ranks.image_queries) + ranks.num_images_without_captions
    text, image = _as_array(text_uncertainty), None if image_uncertainty is None else _as_array(image_uncertainty)
    for name, values in (("text", text), ("image", image)):
        if values is not None and values.shape != (counts[name],):
            raise ValueError(
                f"`{name}_uncertainty` has shape {values.shape}; it must be ({counts[name]},). Give one value for "
                f"each {name} that was ranked."
            )
    answered = ranks.image_to_text_rank == 0
    retrieved = text[ranks.image_to_text_top]
    metrics = {
        "text_to_image": uncertainty_metrics(text, ranks.text_to_image_rank == 0, num_bins=num_bins),
        "image_to_text_by_retrieved_caption": uncertainty_metrics(retrieved, answered, num_bins=num_bins),
    }
    if image is not None:
        own = image[ranks.image_queries]
        metrics["image_to_text_by_image"] = uncertainty_metrics(own, answered, num_bins=num_bins)
    return metrics


def rank_correlation(uncertainty: npt.ArrayLike, ambiguity: npt.ArrayLike) -> float:
    """Spearman correlation of uncertainty with the true ambiguity, both of shape `(texts,)`.

    Equal values share their average rank. In [-1, 1], ideal 1; NaN where either is constant.

    Raises:
        ValueError: on NaN, no values, or shapes that disagree.
    """
    return _spearman(*_vectors(uncertainty=uncertainty, ambiguity=ambiguity))


def specificity_correlation(
    concentration: npt.ArrayLike, level: npt.ArrayLike, group: npt.ArrayLike
) -> dict[str, float]:
    """Whether concentration rises with specificity in hierarchies of captions, such as HierarCaps (ECCV 2024).

    Args:
        concentration (shape `(texts,)`): higher is more specific.
        level (shape `(texts,)`): place in the hierarchy; 0 is the most general.
        group (integers or strings, shape `(texts,)`): the hierarchy that a caption belongs to.

    Returns:
        `mean_group_spearman`: Spearman correlation of concentration and level in a group, mean over the groups in
        which concentration varies, in [-1, 1], ideal 1; NaN where there is none;
        `ordered_share`: share of all groups in which every caption has a higher concentration than every caption of
        a more general level, in [0, 1];
        `overall_spearman`: the correlation over all captions, NaN where concentration is constant;
        `num_groups`, and `num_constant_groups` without a correlation.

    Raises:
        ValueError: on NaN, no values, shapes that disagree, or a group whose captions are all of one level.
    """
    concentration, level = _vectors(concentration=concentration, level=level)
    labels = _as_array(group)
    if labels.shape != level.shape:
        raise ValueError(f"`group` has shape {labels.shape}; it must be {level.shape}, one label for each caption.")
    names, counts = np.unique(labels, return_counts=True)
    order = np.lexsort((level, labels))  # by group, then by level
    correlations, ordered = [], []
    for name, members in zip(names, np.split(order, np.cumsum(counts)[:-1]), strict=True):
        group_level, group_concentration = level[members], concentration[members]
        starts = np.flatnonzero(np.diff(group_level)) + 1
        if starts.size == 0:
            raise ValueError(
                f"every caption of group {name!r} has level {group_level[0]}; a group needs two levels at least. "
                "Leave the group out."
            )
        bounds = np.concatenate(([0], starts))
        lowest = np.minimum.reduceat(group_concentration, bounds)
        highest = np.maximum.reduceat(group_concentration, bounds)
        ordered.append(bool((lowest[1:] > highest[:-1]).all()))
        correlations.append(_spearman(group_concentration, group_level))
    defined = [value for value in correlations if not np.isnan(value)]
    return {
        "mean_group_spearman": float(np.mean(defined)) if defined else float("nan"),
        "ordered_share": float(np.mean(ordered)),
        "overall_spearman": _spearman(concentration, level),
        "num_groups": len(names),
        "num_constant_groups": len(correlations) - len(defined),
    }


def _as_array(values: Any) -> npt.NDArray[Any]:
    if hasattr(values, "detach"):  # a torch tensor, which this module need not import
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy has no bfloat16; widening is exact
    return np.asarray(values)


def _image_index(
    scores: Any, text_image_index: npt.ArrayLike, num_images: int | None
) -> tuple[npt.NDArray[np.int64], int]:
    index = _as_array(text_image_index)
    if index.ndim != 1 or index.size == 0 or index.dtype.kind not in "iu":
        raise ValueError(
            f"`text_image_index` has shape {index.shape} and dtype {index.dtype}; it must be a non-empty vector of "
            "integers. Give the image index of each caption."
        )
    if not callable(scores):
        shape = tuple(np.shape(scores))
        if len(shape) != 2 or shape[0] != len(index) or num_images not in (None, shape[1]):
            raise ValueError(
                f"`scores` has shape {shape}; it must be ({len(index)}, {num_images or 'images'}): one row for each "
                "entry of `text_image_index` and one column for each image. Transpose an images × texts matrix."
            )
        num_images = shape[1]
    if num_images is None:
        raise ValueError("`num_images` is None; where `scores` is a function it must be the number of its columns.")
    if index.min() < 0 or index.max() >= num_images:
        raise ValueError(
            f"`text_image_index` runs from {index.min()} to {index.max()}; allowed is 0 to {num_images - 1}. "
            "Number the images in the order of the columns of `scores`."
        )
    return index.astype(np.int64), num_images


def _blocks(
    scores: Any, num_texts: int, num_images: int, tile_size: int
) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
    for start in range(0, num_texts, tile_size):
        rows = slice(start, min(start + tile_size, num_texts))
        block = _as_array(scores(rows) if callable(scores) else scores[rows])
        if block.shape != (rows.stop - start, num_images) or block.dtype.kind != "f":
            raise ValueError(
                f"`scores` for rows {start} to {rows.stop - 1} have shape {block.shape} and dtype {block.dtype}; they "
                f"must be floating-point of shape ({rows.stop - start}, {num_images}). Convert the scores or correct "
                "`num_images`."
            )
        yield rows, block


def _vectors(**named: npt.ArrayLike) -> list[npt.NDArray[np.float64]]:
    vectors = [_as_array(values).astype(np.float64) for values in named.values()]
    for name, vector in zip(named, vectors, strict=True):
        if vector.ndim != 1 or vector.size == 0 or vector.shape != vectors[0].shape:
            shapes = ", ".join(f"`{key}` {value.shape}" for key, value in zip(named, vectors, strict=True))
            raise ValueError(f"got shapes {shapes}; they must be non-empty vectors of one length, a value per query.")
        if np.isnan(vector).any():
            raise ValueError(
                f"{np.count_nonzero(np.isnan(vector))} of {vector.size} values of `{name}` are NaN; allowed are "
                "numbers. Leave these queries out, or look for NaN in the embeddings."
            )
    return vectors


def _pearson(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    if x.min() == x.max() or y.min() == y.max():
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def _spearman(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    return _pearson(_average_ranks(x), _average_ranks(y))


def _average_ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[position]
