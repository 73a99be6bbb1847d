"""Softmax, its moments and its first two places over candidates that come in blocks."""

from math import comb

import numpy as np
import numpy.typing as npt


class RunningSoftmax:
    """
    softmax(scale · score) of each query over candidates that are added in blocks; none is kept.

    Sums are taken relative to the highest score so far, so that nothing overflows for any scale >= 0.

    Args:
        scale (`float`): at least 0.
        num_queries (`int`): how many.
        order (`int`, defaults to 2): the highest moment of the score that is summed.
    """

    def __init__(self, scale: float, num_queries: int, order: int = 2):
        self.scale = scale
        self.peak = np.full(num_queries, -np.inf)
        self.sums = np.zeros((order + 1, num_queries))  # of weight · (score - peak)^0, ^1, ...

    def add(self, scores: npt.NDArray[np.floating]) -> None:
        """Adds candidates, finite scores of shape `(candidates, queries)`."""
        peak = np.maximum(self.peak, scores.max(axis=0))
        # How far the highest score has risen: what was summed so far shrinks accordingly. Zero at the first block.
        fall = np.where(np.isfinite(self.peak), self.peak - peak, 0.0)
        if fall.any():
            shrunk = np.exp(self.scale * fall) * self.sums
            self.sums = np.stack(
                [
                    sum(comb(power, lower) * fall ** (power - lower) * shrunk[lower] for lower in range(power + 1))
                    for power in range(len(shrunk))
                ]
            )
        self.peak = peak
        shifted = scores - peak.astype(scores.dtype)
        weight = shifted * scores.dtype.type(self.scale)
        np.exp(weight, out=weight)
        self.sums[0] += weight.sum(axis=0)
        for power in range(1, len(self.sums)):
            weight *= shifted
            self.sums[power] += weight.sum(axis=0)

    @property
    def log_total(self) -> npt.NDArray[np.float64]:
        """[`log_sum`] without scale · peak: 0 where one candidate has it all."""
        return np.log(self.sums[0])

    @property
    def log_sum(self) -> npt.NDArray[np.float64]:
        """ln Σ exp(scale · score)."""
        return self.scale * self.peak + self.log_total

    @property
    def cumulants(self) -> npt.NDArray[np.float64]:
        """The first cumulants of the score under the softmax, of shape `(order, queries)`: mean, variance, ..."""
        return _cumulants(self.sums, self.peak)

    @property
    def entropy(self) -> npt.NDArray[np.float64]:
        """Entropy of the softmax in nats."""
        return self.log_total - self.scale * self.sums[1] / self.sums[0]


def _cumulants(sums: npt.NDArray[np.float64], peak: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    moments = sums / sums[0]
    cumulants = np.zeros_like(moments)
    for power in range(1, len(moments)):
        lower = range(1, power)
        of_lower = sum(comb(power - 1, k - 1) * cumulants[k] * moments[power - k] for k in lower)
        cumulants[power] = moments[power] - of_lower
    cumulants[1] += peak
    return cumulants[1:]


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
    """
    softmax(scale · score) over the members of each group: its log-sum, and cumulants of the score up to an order, by
    ascending group.
    """

    def __init__(self, scale: float, scores: npt.NDArray[np.floating], group: npt.NDArray[np.int64], order: int = 2):
        self.groups, member = np.unique(group, return_inverse=True)
        self.peak = np.full(len(self.groups), -np.inf)
        np.maximum.at(self.peak, member, scores)
        shifted = scores - self.peak[member]
        weight = np.exp(scale * shifted)
        powers = [np.bincount(member, weights=weight * shifted**power) for power in range(order + 1)]
        sums = np.stack(powers).astype(np.float64)
        self.log_total = np.log(sums[0])
        self.log_sum = scale * self.peak + self.log_total
        self.cumulants = _cumulants(sums, self.peak)
