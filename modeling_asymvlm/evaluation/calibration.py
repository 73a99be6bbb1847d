"""Whether a probability of being right is one: calibration errors and proper scores."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .arrays import check_probabilities, vectors


def calibration_metrics(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    num_bins: int = 10,
    strategy: Literal["uniform", "quantile"] = "uniform",
) -> dict[str, Any]:
    """Calibration of the probability that the first result is right (Guo et al., ICML 2017).

    Args:
        confidence (shape `(queries,)`): stated probability that the first result is right, in [0, 1].
        correct (shape `(queries,)`): whether it is right, or its probability of being right.
        num_bins (`int`, defaults to 10): number of bins, at least 1.
        strategy (`str`, defaults to `"uniform"`): bins of equal width on [0, 1], or between quantiles of the
            confidence (`"quantile"`), as in `sklearn.calibration.calibration_curve`. A bin holds its upper edge and
            not its lower one; equal confidences are never parted.

    Returns:
        `expected_calibration_error`: mean over the queries of |mean confidence - accuracy| of their bin;
        `maximum_calibration_error`: the largest of a bin; both in [0, 1], ideal 0;
        `brier_score`: mean squared difference of confidence and outcome, in [0, 1], ideal 0;
        `log_loss`: mean negative log-probability of the outcome in nats; infinite where a confidence of exactly 0 or 1
        is wrong;
        `num_bins`; and for each bin that is not empty, in ascending order, the lists `bin_confidence` (mean),
        `bin_accuracy` and `bin_count`.

    Raises:
        ValueError: on NaN, shapes that disagree, values outside [0, 1], `num_bins` below 1 or an unknown strategy.
    """
    stated, hits = vectors(confidence=confidence, correct=correct)
    check_probabilities("confidence", stated, "Pass the posterior of the first result.")
    check_probabilities("correct", hits, "Pass `rank == 0`, or the probability of it.")
    if num_bins < 1:
        raise ValueError(f"`num_bins` is {num_bins}; it must be at least 1. 10 and 15 are common.")
    if strategy not in ("uniform", "quantile"):
        raise ValueError(f"`strategy` is {strategy!r}; it must be 'uniform' or 'quantile'.")
    edges = np.linspace(0, 1, num_bins + 1)
    if strategy == "quantile":
        edges = np.quantile(stated, edges)
    bins = np.searchsorted(edges[1:-1], stated)
    count = np.bincount(bins, minlength=num_bins)
    filled = np.flatnonzero(count)
    mean_confidence = np.bincount(bins, weights=stated)[filled] / count[filled]
    accuracy = np.bincount(bins, weights=hits)[filled] / count[filled]
    error = np.abs(mean_confidence - accuracy)
    return {
        "expected_calibration_error": float(error @ count[filled] / len(hits)),
        "maximum_calibration_error": float(error.max()),
        "brier_score": float(np.mean(hits * (1 - stated) ** 2 + (1 - hits) * stated**2)),
        "log_loss": float(np.mean(_times_log(hits, stated) + _times_log(1 - hits, 1 - stated))),
        "num_bins": num_bins,
        "bin_confidence": mean_confidence.tolist(),
        "bin_accuracy": accuracy.tolist(),
        "bin_count": count[filled].tolist(),
    }


def _times_log(weight: npt.NDArray[np.float64], probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """-weight · ln(probability), 0 where the weight is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weight > 0, -weight * np.log(probability), 0.0)
