"""Error bars: bootstrap over the queries of one run, mean and standard deviation over the seeds of several."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import as_array, spearman, uncertainty_and_correct
from .levels import DECIMALS


def bootstrap_intervals(
    statistic: Callable[..., Any],
    *arrays: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    num_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Any:
    """Percentile bootstrap intervals of any statistic of per-query arrays (Efron and Tibshirani, 1993, ch. 13).

    The captions of an image are not independent: give `clusters`, and whole images are drawn with replacement, with
    all their captions. What an interval covers is the choice of the queries; the gallery stays as it is.

    Args:
        statistic (`Callable`): takes the arrays, resampled, and returns a number or a `dict[str, float]`. The
            queries come sorted by the first array, which makes sorting by it again cheap: the statistic must not
            depend on their order otherwise.
        arrays (shape `(queries, ...)`): for instance uncertainty and correctness.
        clusters (integers or strings, shape `(queries,)`, *optional*): the image of each query. By default each query
            is drawn on its own.
        num_resamples (`int`, defaults to 1000): number of resamples.
        confidence_level (`float`, defaults to 0.95): between 0 and 1.
        seed (`int`, defaults to 0): of the resampling; the same seed gives the same intervals.

    Returns:
        `[low, high]`, or a `dict` of them as `statistic` returns it. Resamples in which the statistic is NaN are left
        out; both ends are NaN where it always is.

    Raises:
        ValueError: without arrays, for unequal lengths, `num_resamples` below 1 or `confidence_level` outside (0, 1).
    """
    data = [as_array(array) for array in arrays]
    labels = np.arange(len(data[0])) if clusters is None and data else as_array(clusters)
    _check_resampling(data, labels, num_resamples, confidence_level)
    if data[0].ndim == 1:
        order = np.argsort(data[0], kind="stable")
        data, labels = [array[order] for array in data], labels[order]
    values = []
    for weight in _resample_weights(labels, num_resamples, seed):
        rows = np.repeat(np.arange(len(labels)), weight)
        values.append(statistic(*(array[rows] for array in data)))
    tail = (1 - confidence_level) / 2
    if isinstance(values[0], Mapping):
        return {key: _percentiles([value[key] for value in values], tail) for key in values[0]}
    return _percentiles(values, tail)


def confidence_intervals(
    uncertainty: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    clusters: npt.ArrayLike | None = None,
    num_bins: int | None = 10,
    num_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float]]:
    """[`bootstrap_intervals`] of `spearman`, `aurc` and `auroc` of [`confidence_metrics`], computed together.

    Resampling adds noise to the levels and so draws `spearman` towards 0: its interval can lie beside a value close to
    -1 or 1, and is the cautious side of the truth.

    The same resamples and the same intervals, several times faster: the queries are sorted once, and a resample is
    a weight of each query.

    Args:
        uncertainty, correct, num_bins: as for [`confidence_metrics`]; `None` leaves `spearman` out.
        clusters, num_resamples, confidence_level, seed: as for [`bootstrap_intervals`].

    Returns:
        `{"spearman": [low, high], "aurc": [low, high], "auroc": [low, high]}`.

    Raises:
        ValueError: with fewer clusters than bins, and as these functions.
    """
    uncertainty, hits = uncertainty_and_correct(uncertainty, correct)
    labels = np.arange(len(hits)) if clusters is None else as_array(clusters)
    _check_resampling([uncertainty], labels, num_resamples, confidence_level)
    if num_bins is not None and not 2 <= num_bins <= len(np.unique(labels)):
        raise ValueError(
            f"`num_bins` is {num_bins} for {len(np.unique(labels))} clusters; it must be from 2 to their number."
        )
    order = np.argsort(uncertainty, kind="stable")
    hits = hits[order]
    starts = np.flatnonzero(np.diff(uncertainty[order], prepend=-np.inf) != 0)  # of equal uncertainties
    values: dict[str, list[float]] = {"aurc": [], "auroc": []}
    if num_bins is not None:
        values["spearman"] = []
    for weight in _resample_weights(labels[order], num_resamples, seed):
        count = np.add.reduceat(weight, starts)
        right = np.add.reduceat(weight * hits, starts)
        wrong = count - right
        values["auroc"].append(_auroc(right, wrong))
        values["aurc"].append(_aurc(count, wrong))
        if num_bins is not None:
            varies = np.count_nonzero(count) > 1
            values["spearman"].append(_level_trend(count, right, num_bins) if varies else float("nan"))
    return {name: _percentiles(of_name, (1 - confidence_level) / 2) for name, of_name in values.items()}


def auroc_difference_interval(
    confidences: tuple[npt.ArrayLike, npt.ArrayLike],
    correct: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    clusters: npt.ArrayLike,
    num_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> list[float]:
    """[`bootstrap_intervals`] of what the AUROC of one confidence has above another's, the queries drawn together.

    Args:
        confidences (two of shape `(queries,)`): higher is more certain, each in any unit.
        correct (two of shape `(queries,)`): whether the first result that each confidence is of is right.
        clusters, num_resamples, confidence_level, seed: as for [`bootstrap_intervals`].

    Returns:
        `[low, high]`; NaN where one side's first results are all right, or all wrong, in every resample.

    Raises:
        ValueError: as [`bootstrap_intervals`].
    """
    labels = as_array(clusters)
    sides = []
    for confidence, answers in zip(confidences, correct, strict=True):
        uncertainty, hits = uncertainty_and_correct(-as_array(confidence), answers)
        _check_resampling([uncertainty], labels, num_resamples, confidence_level)
        order = np.argsort(uncertainty, kind="stable")
        sides.append((order, hits[order], np.flatnonzero(np.diff(uncertainty[order], prepend=-np.inf) != 0)))
    values = []
    for weight in _resample_weights(labels, num_resamples, seed):
        one, other = (_weighted_auroc(weight[order], hits, starts) for order, hits, starts in sides)
        values.append(one - other)
    return _percentiles(values, (1 - confidence_level) / 2)


def _weighted_auroc(weight: npt.NDArray[np.int64], hits: npt.NDArray[np.float64], starts: npt.NDArray[Any]) -> float:
    right = np.add.reduceat(weight * hits, starts)
    return _auroc(right, np.add.reduceat(weight, starts) - right)


def _auroc(right: npt.NDArray[np.float64], wrong: npt.NDArray[np.float64]) -> float:
    pairs = right.sum() * wrong.sum()
    return float(wrong @ (np.cumsum(right) - right / 2) / pairs) if pairs > 0 else float("nan")


def _aurc(count: npt.NDArray[np.int64], wrong: npt.NDArray[np.float64]) -> float:
    """
    Mean risk over the coverages. Among m equal uncertainties with e errors, after A queries with E errors, the i-th
    has the risk (E + i e/m) / (A + i), whose sum over i is e + (E - A e/m) (H(A + m) - H(A)), H the harmonic numbers.
    """
    answered = np.cumsum(count)
    before, errors = answered - count, np.cumsum(wrong) - wrong
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, answered[-1] + 1))])
    rate = wrong / np.maximum(count, 1)
    return float((wrong + (errors - rate * before) * (harmonic[answered] - harmonic[before])).sum() / answered[-1])


def _level_trend(count: npt.NDArray[np.int64], right: npt.NDArray[np.float64], num_bins: int) -> float:
    """Spearman correlation of level and R@1 of the level, of groups of equal uncertainty."""
    answered, rate = np.cumsum(count), right / np.maximum(count, 1)
    size, rest = divmod(int(answered[-1]), num_bins)
    level = np.arange(num_bins + 1)
    edges = level * size + np.minimum(level, rest)
    last = np.searchsorted(answered, edges[1:])  # the group that an edge may cut
    below = np.concatenate([[0.0], np.cumsum(right)[last] - (answered[last] - edges[1:]) * rate[last]])
    return spearman(level[1:].astype(np.float64), (np.diff(below) / np.diff(edges)).round(DECIMALS))


def _check_resampling(data: list[Any], labels: Any, num_resamples: int, confidence_level: float) -> None:
    lengths = {len(array) for array in [*data, labels]} if data else {0}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"the arrays and `clusters` have lengths {[len(array) for array in data]} and {np.shape(labels)}; give "
            "at least one array, all with a value per query."
        )
    if num_resamples < 1 or not 0 < confidence_level < 1:
        raise ValueError(
            f"`num_resamples` is {num_resamples} and `confidence_level` {confidence_level}; they must be at least 1 "
            "and between 0 and 1. 1000 and 0.95 are common."
        )


def _resample_weights(labels: npt.NDArray[Any], num_resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each query stands in each resample: as often as its cluster is drawn."""
    names, cluster = np.unique(labels, return_inverse=True)
    generator = np.random.default_rng(seed)
    for _ in range(num_resamples):
        drawn = generator.integers(len(names), size=len(names))
        yield np.bincount(drawn, minlength=len(names))[cluster]


def _percentiles(values: Sequence[float], tail: float) -> list[float]:
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    return np.quantile(defined, [tail, 1 - tail]).tolist() if defined.size else [float("nan")] * 2


def mean_over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of every number in results of equal form, such as those of several seeds.

    Args:
        runs (`Sequence[Mapping]`): results, nested as deep as they are; lists of numbers are taken place by place.

    Returns:
        The same form, with `{"mean", "standard_deviation", "num_seeds"}` in place of each number. The standard
        deviation is that of the sample, with n - 1, and NaN for one run. What is no number is left out.

    Raises:
        ValueError: without runs, or if they have different keys.
    """
    if not runs or any(set(run) != set(runs[0]) for run in runs):
        keys = [sorted(map(str, run)) for run in runs]
        raise ValueError(f"the runs have the keys {keys}; give at least one run, all of the same form.")
    summary: dict[str, Any] = {}
    for key, first in runs[0].items():
        values = [run[key] for run in runs]
        if isinstance(first, Mapping):
            summary[key] = mean_over_seeds(values)
        elif isinstance(first, (int, float)) and not isinstance(first, bool):
            summary[key] = _mean_and_deviation(values)
        elif isinstance(first, (list, tuple)) and all(isinstance(place, (int, float)) for place in first):
            summary[key] = [_mean_and_deviation(place) for place in zip(*values, strict=True)]
    return summary


def _mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "standard_deviation": deviation, "num_seeds": len(values)}
