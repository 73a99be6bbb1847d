"""How far apart two texts are as distributions, on scales that do not depend on how a head was trained."""

import torch
from torch.distributions import kl_divergence

from ..model.distributions import PowerSpherical, VonMisesFisher


TextLaw = VonMisesFisher | PowerSpherical


def symmetric_divergence(first: TextLaw, second: TextLaw) -> torch.Tensor:
    """
    (KL(first ‖ second) + KL(second ‖ first)) / 2 in nats, in closed form or by an exact series, of broadcast shape.

    Args:
        first, second (`VonMisesFisher` or `PowerSpherical`): of broadcastable batch shapes and one dimension.
    """
    return (kl_divergence(first, second) + kl_divergence(second, first)) / 2


def relative_divergence(first: TextLaw, second: TextLaw) -> torch.Tensor:
    """
    The symmetric divergence as a share of what the two texts say at all,

        (KL(first ‖ second) + KL(second ‖ first)) / (KL(first ‖ uniform) + KL(second ‖ uniform)):

    0 for the same distribution. Where kappa is well below the dimension, it is near 2 (1 - mu_1'mu_2) for equal
    concentrations, and near 2 for a text against one that says nothing. Arguments as for [`symmetric_divergence`].
    """
    said = first._relative_entropy() + second._relative_entropy()
    ratio = 2 * symmetric_divergence(first, second) / said.clamp(min=torch.finfo(said.dtype).tiny)
    return torch.where(said > 0, ratio, 0.0)


def directional_divergence(first: TextLaw, second: TextLaw) -> torch.Tensor:
    """
    The part of the symmetric divergence that the directions make: what is left after subtracting that of the same
    concentrations about one direction. In nats; kappa A_d(kappa) (1 - mu_1'mu_2) for von Mises-Fisher texts of equal
    concentration. Two texts have much of it only if both are specific and disagree; a vague text has little with any.
    Arguments as for [`symmetric_divergence`].
    """
    aligned = type(second)(first.loc, second.concentration, validate_args=False)
    return symmetric_divergence(first, second) - symmetric_divergence(first, aligned)
