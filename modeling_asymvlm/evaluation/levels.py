"""The trend of accuracy over levels of uncertainty: S, R² and -S·R² of ProbVLM (Upadhyay et al., ICCV 2023)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import pearson, spearman, uncertainty_and_correct, vectors


DECIMALS = (
    12  # of the R@1 of a level: levels of one large group of equal uncertainty are equal, not of unlike rounding
)


def uncertainty_metrics(uncertainty: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = 10) -> dict[str, Any]:
    """How well uncertainty foretells retrieval errors, by levels of uncertainty.

    The queries are sorted by ascending uncertainty and cut into `num_bins` levels of equal count; where the count does
    not divide, the first levels hold one more. Queries of equal uncertainty could stand in any order: each counts as
    right by the share of them that are, so that the order of the data decides nothing.

    Args:
        uncertainty (shape `(queries,)`): higher is less certain, in any unit: only the order decides the bins.
        correct (shape `(queries,)`): whether the first result is right (`rank == 0`), or its probability of being
            right where the data let it be known, in [0, 1].
        num_bins (`int`, defaults to 10): number of levels, at least 2.

    Returns:
        `spearman`: S, Spearman correlation of level and R@1 of the level, in [-1, 1], ideal -1;
        `pearson`: Pearson correlation of the same, in [-1, 1], ideal -1;
        `r_squared`: R² of the least-squares straight line of R@1 on level, in [0, 1], ideal 1; the square of
        `pearson`;
        `neg_spearman_r_squared`: -S·R², in [-1, 1], ideal 1;
        `point_biserial`: Pearson correlation of the uncertainty itself and `correct` over the queries, without
        levels, in [-1, 1]; unlike the others it depends on the unit, and is NaN where an uncertainty is infinite;
        `num_bins`; and for each level, most certain first, the lists `bin_recall` (R@1, a fraction),
        `bin_uncertainty` (mean) and `bin_count`.
        The correlations are NaN where every level has the same R@1 (`point_biserial`: every query the same
        `correct`), as where every query has the same uncertainty. They measure a trend, not its size.

    Raises:
        ValueError: on NaN uncertainty, shapes that disagree, `correct` outside [0, 1], `num_bins` below 2 or above
            the number of queries.
    """
    uncertainty, hits = uncertainty_and_correct(uncertainty, correct)
    if not 2 <= num_bins <= len(hits):
        raise ValueError(
            f"`num_bins` is {num_bins} for {len(hits)} queries; it must be from 2 to the number of queries. "
            "Use fewer bins or more queries."
        )
    _, group, count = np.unique(uncertainty, return_inverse=True, return_counts=True)
    share = (np.bincount(group, weights=hits) / count)[group]
    bins = np.array_split(np.argsort(uncertainty, kind="stable"), num_bins)
    recall = np.array([share[members].mean() for members in bins]).round(DECIMALS)
    level = np.arange(1.0, num_bins + 1)
    ordered = len(count) > 1
    rank_trend = spearman(level, recall) if ordered else float("nan")
    linear_trend = pearson(level, recall) if ordered else float("nan")
    return {
        "spearman": rank_trend,
        "pearson": linear_trend,
        "r_squared": linear_trend**2,
        "neg_spearman_r_squared": -rank_trend * linear_trend**2,
        "point_biserial": pearson(uncertainty, hits),
        "num_bins": num_bins,
        "bin_recall": recall.tolist(),
        "bin_uncertainty": [float(uncertainty[members].mean()) for members in bins],
        "bin_count": [len(members) for members in bins],
    }


def rank_correlation(uncertainty: npt.ArrayLike, ambiguity: npt.ArrayLike) -> float:
    """Spearman correlation of uncertainty with the true ambiguity, both of shape `(texts,)`.

    Equal values share their average rank. In [-1, 1], ideal 1; NaN where either is constant.

    Raises:
        ValueError: on NaN, no values, or shapes that disagree.
    """
    return spearman(*vectors(uncertainty=uncertainty, ambiguity=ambiguity))
