"""The temperature at which heads are compared and kept: the minimiser of the validation objective over tau."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


RANGE = 1e6  # tau is looked for within this factor of where the search begins
TOLERANCE = 1e-7
MAX_STEPS = 100


@dataclass(frozen=True)
class FittedTemperature:
    """
    Attributes:
        logit_scale (`float`): tau > 0.
        at_bound (`bool`): whether the objective would fall further with tau; see [`fit_temperature`].
    """

    logit_scale: float
    at_bound: bool


def fit_temperature(
    objective: Callable[[float], tuple[float, float, float]], *, start: float, smallest_loss: float
) -> FittedTemperature:
    """
    Minimises a convex objective over tau > 0, by Newton's method within a bracket.

    Where every pair is told apart, the objective falls to 0 as tau grows for ever. So the smallest tau is taken at
    which it is `smallest_loss`: a few pairs do not vouch for less.

    Args:
        objective (`Callable`): takes tau, gives the value in nats and its first and second derivative.
        start (`float`): where to begin, above 0; the result lies within a factor of 10^6 of it.
        smallest_loss (`float`): above 0, in nats.
    """
    low, high, tau = start / RANGE, start * RANGE, start
    value = float("inf")
    for _ in range(MAX_STEPS):
        value, slope, curvature = objective(tau)
        too_small = value <= smallest_loss
        if slope == curvature == 0 and (not too_small or objective(low)[0] <= smallest_loss):
            return FittedTemperature(start, False)  # nothing to tell apart: one tau is as good as another
        low, high = (low, tau) if too_small or slope >= 0 else (tau, high)
        to_minimum = tau - slope / curvature if curvature > 0 else float("inf")
        # The tangent of a convex function lies below it: from the left it does not pass the tau of `smallest_loss`.
        to_smallest = tau - (value - smallest_loss) / slope if slope < 0 else float("inf")
        step = to_smallest if too_small and slope < 0 else min(to_minimum, to_smallest)
        step = min(max(step, tau / 8), 8 * tau) if slope else tau / 8
        if abs(step - tau) <= TOLERANCE * tau:
            break
        tau = step if low < step < high else (low * high) ** 0.5
    return FittedTemperature(tau, value <= 1.001 * smallest_loss)


class ObjectiveOfTemperature:
    """
    The unified objective of blocks of matching pairs as a function of tau alone, with its first two derivatives.

    Attributes:
        num_pairs (`int`): how many pairs were added.
    """

    def __init__(self) -> None:
        self.num_pairs = 0
        self._blocks: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def add(self, scores: torch.Tensor, image_ids: torch.Tensor | None) -> None:
        """
        Adds a block whose pairs are contrasted with one another.

        Args:
            scores (`torch.Tensor` of shape `(pairs, pairs)`): delta of every text with every image.
            image_ids (`torch.Tensor` of shape `(pairs,)`, *optional*): as for [`unified_loss`].
        """
        same_image = None
        if image_ids is not None and len(image_ids.unique()) < len(image_ids):
            same_image = image_ids[:, None] == image_ids
            same_image.fill_diagonal_(False)
        self._blocks.append((scores, same_image))
        self.num_pairs += len(scores)

    def __call__(self, tau: float) -> tuple[float, float, float]:
        """The mean over the pairs, in nats, and its first and second derivative at tau."""
        totals = torch.zeros(3, dtype=torch.float64)
        for scores, same_image in self._blocks:
            own = scores.diagonal()
            for dim, of_query in ((1, own[:, None]), (0, own)):
                relative = scores - of_query  # 0 for the own pair, whose log-probability is then -log_sum
                logits = tau * relative
                if same_image is not None:
                    logits.masked_fill_(same_image, float("-inf"))
                log_sum = logits.logsumexp(dim)
                weighted = (logits - log_sum.unsqueeze(dim)).exp_() * relative
                mean = weighted.sum(dim)
                variance = (weighted * relative).sum(dim) - mean**2
                totals += torch.stack([part.double().sum() for part in (log_sum, mean, variance)]).cpu()
        value, slope, curvature = (totals / (2 * self.num_pairs)).tolist()
        return value, slope, curvature
