"""Softmax, its moments and its first two places over candidates that come in blocks."""

from typing import Any

import numpy as np
import numpy.typing as npt


class RunningSoftmax:
    """
    softmax(scale · score) of each query over candidates that are added in blocks; none is kept.

    Sums are taken relative to the highest score so far, so that nothing overflows for any scale >= 0.
    """

    def __init__(self, scale: float, num_queries: int):
        self.scale = scale
        self.peak = np.full(num_queries, -np.inf)
        self.sums = np.zeros((3, num_queries))  # of weight · (score - peak)^0, ^1 and ^2

    def add(self, scores: npt.NDArray[np.floating]) -> None:
        """Adds candidates, finite scores of shape `(candidates, queries)`."""
        peak = np.maximum(self.peak, scores.max(axis=0))
        # How far the highest score has risen: what was summed so far shrinks accordingly. Zero at the first block.
        fall = np.where(np.isfinite(self.peak), self.peak - peak, 0.0)
        total, first, second = np.exp(self.scale * fall) * self.sums
        self.sums = np.stack([total, first + fall * total, second + fall * (2 * first + fall * total)])
        self.peak = peak
        shifted = scores - peak.astype(scores.dtype)
        weight = np.exp(shifted * scores.dtype.type(self.scale))
        self.sums[0] += weight.sum(axis=0)
        weight *= shifted
        self.sums[1] += weight.sum(axis=0)
        weight *= shifted
        self.sums[2] += weight.sum(axis=0)

    @property
    def log_sum(self) -> npt.NDArray[np.float64]:
        """ln Σ exp(scale · score)."""
        return self.scale * self.peak + np.log(self.sums[0])

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean score under the softmax."""
        return self.peak + self.sums[1] / self.sums[0]

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        """Variance of the score under the softmax."""
        return self.sums[2] / self.sums[0] - (self.sums[1] / self.sums[0]) ** 2

    @property
    def entropy(self) -> npt.NDArray[np.float64]:
        """Entropy of the softmax in nats."""
        return np.log(self.sums[0]) - self.scale * self.sums[1] / self.sums[0]


class TopTwo:
    """The best candidate, and the scores of the best two, of each query; of equal ones the first added."""

    def __init__(self, num_queries: int):
        self.top = np.zeros(num_queries, np.int64)
        self.top_score = np.full(num_queries, -np.inf)
        self.second_score = np.full(num_queries, -np.inf)

    def add(self, scores: npt.NDArray[np.floating], first_candidate: int, queries: slice) -> None:
        """Adds candidates of these queries, scores of shape `(candidates, queries)`."""
        top = scores.argmax(axis=0)
        place = top, np.arange(scores.shape[1])
        top_score = scores[place]
        others = np.array(scores, order="K")
        others[place] = -np.inf
        lower = np.minimum(top_score, self.top_score[queries])
        self.second_score[queries] = np.maximum(np.maximum(lower, self.second_score[queries]), others.max(axis=0))
        higher = top_score > self.top_score[queries]
        self.top[queries] = np.where(higher, first_candidate + top, self.top[queries])
        self.top_score[queries] = np.maximum(top_score, self.top_score[queries])


class GroupedSoftmax:
    """softmax(scale · score) over the members of each group: log-sum, mean and variance by ascending group."""

    def __init__(self, scale: float, scores: npt.NDArray[np.float64], group: npt.NDArray[np.int64]):
        self.groups, member = np.unique(group, return_inverse=True)
        peak = np.full(len(self.groups), -np.inf)
        np.maximum.at(peak, member, scores)
        shifted = scores - peak[member]
        weight = np.exp(scale * shifted)
        total, first, second = (np.bincount(member, weights=weight * shifted**power) for power in (0, 1, 2))
        self.peak: Any = peak
        self.log_sum = scale * peak + np.log(total)
        self.mean = peak + first / total
        self.variance = second / total - (first / total) ** 2
