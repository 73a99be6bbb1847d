"""Recall and median rank where every caption has one image."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .ranks import RetrievalRanks, rank_both_ways
from .scores import Scores


def recall_at_k(ranks: RetrievalRanks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of the queries whose counterpart is among the first `k` results.

    An image counts as answered when any of its own captions is among the first `k`. Where `k` reaches the size of
    the gallery the recall is 1.

    Returns:
        `text_to_image_recall@k` and `image_to_text_recall@k` for each `k`, fractions in [0, 1].

    Raises:
        ValueError: if a `k` is below 1.
    """
    check_ks(ks)
    text = {f"text_to_image_recall@{k}": float(np.mean(ranks.text_to_image_rank < k)) for k in ks}
    image = {f"image_to_text_recall@{k}": float(np.mean(ranks.image_to_text_rank < k)) for k in ks}
    return text | image


def check_ks(ks: Sequence[int]) -> None:
    """Raises `ValueError` if a `k` is below 1."""
    if any(k < 1 for k in ks):
        raise ValueError(f"`ks` is {tuple(ks)}; every k must be at least 1, as in (1, 5, 10).")


def median_rank(ranks: RetrievalRanks) -> dict[str, float]:
    """`text_to_image_median_rank` and `image_to_text_median_rank`, counted from 1 as in the literature; 1 is best."""
    return {
        "text_to_image_median_rank": float(np.median(ranks.text_to_image_rank)) + 1,
        "image_to_text_median_rank": float(np.median(ranks.image_to_text_rank)) + 1,
    }


def retrieval_metrics(
    scores: Scores,
    text_image_index: npt.ArrayLike,
    *,
    ks: Sequence[int] = (1, 5, 10),
    num_images: int | None = None,
    tile_size: int | None = None,
) -> dict[str, float]:
    """[`recall_at_k`] and [`median_rank`] of [`rank_both_ways`], whose arguments and errors these are."""
    check_ks(ks)
    ranks = rank_both_ways(scores, text_image_index, num_images=num_images, tile_size=tile_size)
    return recall_at_k(ranks, ks) | median_rank(ranks)
