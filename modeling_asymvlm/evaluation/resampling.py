"""Error bars: bootstrap over the queries of one run, mean and standard deviation over the seeds of several."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import as_array


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
    if data[0].ndim == 1:
        order = np.argsort(data[0], kind="stable")
        data, labels = [array[order] for array in data], labels[order]
    names, cluster = np.unique(labels, return_inverse=True)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        drawn = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        rows = np.repeat(np.arange(len(labels)), drawn[cluster])
        values.append(statistic(*(array[rows] for array in data)))
    tail = (1 - confidence_level) / 2
    if isinstance(values[0], Mapping):
        return {key: _percentiles([value[key] for value in values], tail) for key in values[0]}
    return _percentiles(values, tail)


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
        elif isinstance(first, (list, tuple)) and np.asarray(first).dtype.kind in "iuf":
            summary[key] = [_mean_and_deviation(place) for place in zip(*values, strict=True)]
    return summary


def _mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "standard_deviation": deviation, "num_seeds": len(values)}
