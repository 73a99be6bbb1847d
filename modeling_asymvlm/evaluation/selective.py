"""Selective prediction: what is gained by leaving uncertain queries unanswered, and whether errors are found."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import uncertainty_and_correct


def risk_coverage_curve(
    uncertainty: npt.ArrayLike, correct: npt.ArrayLike, *, max_points: int | None = None
) -> dict[str, Any]:
    """The share of wrong answers (risk) when the most certain queries alone are answered (El-Yaniv and Wiener, 2010).

    Queries of equal uncertainty can be answered in any order: the risk is its mean over all of them, so that an
    uncertainty which is the same everywhere has the overall error rate at every coverage.

    Args:
        uncertainty (shape `(queries,)`): higher is less certain, in any unit.
        correct (shape `(queries,)`): whether the first result is right, or its probability of being right.
        max_points (`int`, *optional*): of the curve, evenly spaced with the last one among them; by default all.

    Returns:
        `coverage` 1/n, 2/n, ..., 1; `risk` at each coverage; `optimal_risk`, that of an uncertainty which puts every
        error after every right answer: arrays in [0, 1] of shape `(queries,)`, or `(max_points,)` where there are
        more queries; and from all points `aurc` and `optimal_aurc`, the means of the two, and `num_queries`.

    Raises:
        ValueError: on NaN uncertainty, shapes that disagree, `correct` outside [0, 1] or `max_points` below 1.
    """
    uncertainty, hits = uncertainty_and_correct(uncertainty, correct)
    _, group, count = np.unique(uncertainty, return_inverse=True, return_counts=True)
    mean_error = np.bincount(group, weights=1 - hits) / count
    answered = np.arange(1, len(hits) + 1)
    risk, optimal_risk = np.cumsum(np.repeat(mean_error, count)) / answered, np.cumsum(np.sort(1 - hits)) / answered
    if max_points is not None and max_points < 1:
        raise ValueError(f"`max_points` is {max_points}; it must be at least 1, or None for all points.")
    points = min(max_points or len(hits), len(hits))
    kept = np.ceil(np.arange(1, points + 1) * len(hits) / points).astype(int) - 1
    return {
        "coverage": answered[kept] / len(hits),
        "risk": risk[kept],
        "optimal_risk": optimal_risk[kept],
        "aurc": float(risk.mean()),
        "optimal_aurc": float(optimal_risk.mean()),
        "num_queries": len(hits),
    }


def selective_metrics(uncertainty: npt.ArrayLike, correct: npt.ArrayLike) -> dict[str, float]:
    """Area under the risk–coverage curve, and detection of wrong first results.

    Args:
        uncertainty, correct: as for [`risk_coverage_curve`].

    Returns:
        `error_rate`: share of wrong first results, the risk at full coverage;
        `aurc`: mean of the risk over all n coverages (Geifman et al., ICLR 2019), in [0, 1], lower is better;
        `optimal_aurc`: that of the best order; `excess_aurc`: `aurc - optimal_aurc`, at least 0, ideal 0;
        `auroc`: probability that a wrong first result has a higher uncertainty than a right one, equal ones counting
        one half, in [0, 1], ideal 1, 0.5 by chance;
        `aupr`: average precision, in [0, 1], of finding the wrong ones by descending uncertainty, `error_rate` by
        chance; equal ones are found together.
        `auroc` and `aupr` are NaN where all first results are right, or all are wrong. Where `correct` is a
        probability, each query counts as right and as wrong with these weights.

    Raises:
        ValueError: as [`risk_coverage_curve`].
    """
    curve = risk_coverage_curve(uncertainty, correct)
    uncertainty, hits = uncertainty_and_correct(uncertainty, correct)
    _, group = np.unique(uncertainty, return_inverse=True)
    wrong, right = np.bincount(group, weights=1 - hits), np.bincount(group, weights=hits)
    auroc = aupr = float("nan")
    if wrong.sum() > 0 and right.sum() > 0:
        below = np.cumsum(right) - right
        auroc = float(wrong @ (below + right / 2) / (wrong.sum() * right.sum()))
        wrong, right = wrong[::-1], right[::-1]
        found = np.cumsum(wrong)
        aupr = float(wrong @ (found / (found + np.cumsum(right))) / wrong.sum())
    return {
        "error_rate": float(np.mean(1 - hits)),
        "aurc": curve["aurc"],
        "optimal_aurc": curve["optimal_aurc"],
        "excess_aurc": curve["aurc"] - curve["optimal_aurc"],
        "auroc": auroc,
        "aupr": aupr,
    }
