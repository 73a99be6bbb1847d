"""What all metrics share: arrays of any kind as NumPy, checks, and correlations."""

from typing import Any

import numpy as np
import numpy.typing as npt


def as_array(values: Any) -> npt.NDArray[Any]:
    """A NumPy array of what may be a tensor on any device; floating-point values are float32 at least."""
    if hasattr(values, "detach"):  # a torch tensor, which the metrics need not import
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy has no bfloat16; widening is exact
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def vectors(**named: npt.ArrayLike) -> list[npt.NDArray[np.float64]]:
    """
    float64 vectors of one length, a value per query.

    Raises:
        ValueError: on NaN, no values, or shapes that disagree.
    """
    arrays = [as_array(values).astype(np.float64) for values in named.values()]
    for name, vector in zip(named, arrays, strict=True):
        if vector.ndim != 1 or vector.size == 0 or vector.shape != arrays[0].shape:
            shapes = ", ".join(f"`{key}` {value.shape}" for key, value in zip(named, arrays, strict=True))
            raise ValueError(f"got shapes {shapes}; they must be non-empty vectors of one length, a value per query.")
        if np.isnan(vector).any():
            raise ValueError(
                f"{np.count_nonzero(np.isnan(vector))} of {vector.size} values of `{name}` are NaN; allowed are "
                "numbers. Leave these queries out, or look for NaN in the embeddings."
            )
    return arrays


def check_probabilities(name: str, values: npt.NDArray[np.float64], remedy: str) -> None:
    """Raises `ValueError` unless all values lie from 0 to 1."""
    outside = values[(values < 0) | (values > 1)]
    if outside.size:
        raise ValueError(
            f"`{name}` contains {outside[0]}; allowed are booleans and probabilities from 0 to 1. {remedy}"
        )


def uncertainty_and_correct(
    uncertainty: npt.ArrayLike, correct: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Checks these two vectors; see [`vectors`] and [`check_probabilities`]."""
    uncertainty, hits = vectors(uncertainty=uncertainty, correct=correct)
    check_probabilities("correct", hits, "Pass `rank == 0`, or the probability of it.")
    return uncertainty, hits


def pearson(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Pearson correlation; NaN where one vector is constant or infinite somewhere."""
    if x.min() == x.max() or y.min() == y.max() or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def spearman(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Spearman correlation; equal values share their average rank; NaN where one vector is constant."""
    return pearson(average_ranks(x), average_ranks(y))


def average_ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1, equal values sharing their average."""
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[position]
