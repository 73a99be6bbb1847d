"""Whether a specific text entails a general one, from the distributions of both.

"a red circle at the top" entails "a circle": whatever the first describes, the second describes too. Two scores of a
pair (a, b), both with a natural threshold, both of them not symmetric:

**Divergence.** `KL(a ‖ uniform) - KL(a ‖ b) = E_a[ln p_b(z) - ln p_uniform(z)]`, the mean log-likelihood ratio of b
over pictures that a describes, in nats. Above 0, b tells these pictures better than saying nothing does.

**Inclusion.** The probability under a of the region of highest density of b that holds the share `level` of b. Both
distributions fall off from their mode, so it is a cap, `{z : mu_b'z >= t}`. Entailed if it holds as much of a as of b.
With rho = mu_a'mu_b and the cosine s = mu_a'z,

    mu_b'z = rho s + sqrt(1 - rho^2) sqrt(1 - s^2) u,     (u + 1) / 2 ~ Beta((d-2)/2, (d-2)/2),

where u is the first coordinate of a uniform direction in the d - 1 dimensions across mu_a, independent of s
(Mardia & Jupp, "Directional Statistics", 2000, 9.3.1, the tangent-normal decomposition). So

    P_a(mu_b'z >= t) = int f_a(s) P(u >= (t - rho s) / (sqrt(1 - rho^2) sqrt(1 - s^2))) ds,

one integral of an incomplete beta function, by a Gauss-Legendre rule in the angle arccos s, whose density is
proportional to `exp(kappa cos) sin^(d-2)` or `(1 + cos)^kappa sin^(d-2)`. Where kappa is well below d, this says
`kappa_a rho >= kappa_b`, and the other score `kappa_a rho >= kappa_b / 2`.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.distributions import kl_divergence

from ..model.distributions import VonMisesFisher
from ..utils.extras import require
from .divergences import TextLaw


require(__name__, "scipy")

from scipy.special import betainc  # noqa: E402


METHODS = ("divergence", "inclusion")

NODES, WEIGHTS = np.polynomial.legendre.leggauss(256)
NUM_GRID_POINTS = 257
NEWTON_STEPS = 4
# Further from the mean cosine, a law has no more than about exp(-20) of its mass, the most in three dimensions.
STANDARD_DEVIATIONS = 20
PAIRS_AT_A_TIME = 4096
ROUNDING = 1e-6  # of a score: a text entails itself


def entails(specific: TextLaw, general: TextLaw, *, method: str = "inclusion", level: float = 0.9) -> torch.Tensor:
    """
    Whether texts entail others, by the natural threshold of a score; on a corpus at hand, a threshold on
    [`entailment_score`] that is chosen on examples does better.

    Args:
        specific, general (`VonMisesFisher` or `PowerSpherical`):
            Of [`~AsymVLMModel.get_text_distribution`], of one kind and dimension and of broadcastable batch
            shapes.
        method (`str`, *optional*, defaults to `"inclusion"`): `"inclusion"` or `"divergence"`.
        level (`float`, *optional*, defaults to 0.9): for inclusion, the share of `general` in its region, in (0, 1).

    Returns:
        `torch.BoolTensor` of the broadcast batch shape.

    Raises:
        TypeError: for distributions of two kinds.
        ValueError: for another method, level or dimension.
    """
    least = level if method == "inclusion" else 0.0
    return entailment_score(specific, general, method=method, level=level) >= least - ROUNDING


def entailment_score(
    specific: TextLaw, general: TextLaw, *, method: str = "inclusion", level: float = 0.9
) -> torch.Tensor:
    """
    How far texts entail others. Arguments and errors as for [`entails`].

    Returns:
        `torch.DoubleTensor` of the broadcast batch shape: a probability for `"inclusion"`, nats for `"divergence"`.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    if type(specific) is not type(general):
        raise TypeError(
            f"The distributions must be of one kind, got {type(specific).__name__} and {type(general).__name__}."
        )
    if method == "inclusion":
        return inclusion_probability(specific, general, level=level)

    def divergence(one: TextLaw, two: TextLaw) -> torch.Tensor:
        return one._relative_entropy() - kl_divergence(one, two)

    return _of_pairs(divergence, specific, general)


@torch.no_grad()
def inclusion_probability(specific: TextLaw, general: TextLaw, *, level: float = 0.9) -> torch.Tensor:
    """
    The probability under `specific` of the smallest region that holds the share `level` of `general`; `level` itself
    for equal distributions. Within 1e-7.

    Args:
        specific, general (`VonMisesFisher` or `PowerSpherical`):
            Of one kind and dimension d >= 3, and of broadcastable batch shapes.
        level (`float`, *optional*, defaults to 0.9): in (0, 1).

    Returns:
        `torch.DoubleTensor` of the broadcast batch shape, on the CPU.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is a probability and must lie between 0 and 1, got {level}.")
    if specific.dim != general.dim or specific.dim < 3:
        raise ValueError(
            f"Inclusion is between distributions on one sphere of dimension 3 or more, got {specific.dim} and "
            f"{general.dim}."
        )

    def probability(one: TextLaw, two: TextLaw) -> torch.Tensor:
        # Of the chord, and not of the cosine, so that small angles keep their digits.
        tilts = 2 * (one.separation(two.loc) / 2).sqrt().clamp(max=1).arcsin()
        return torch.from_numpy(_probability_of_cap(one, tilts.numpy(), _edges_of_regions(two, level)))

    return _of_pairs(probability, specific, general)


def _of_pairs(score: Callable[[TextLaw, TextLaw], torch.Tensor], first: TextLaw, second: TextLaw) -> torch.Tensor:
    """
    Scores of laws of broadcastable batch shapes, which are broadcast some pairs at a time.

    Args:
        score (`Callable`): gives the scores `(n,)` of laws of batch shape `(n,)`, in float64 on the CPU.
        first, second: the laws.
    """
    shape = torch.broadcast_shapes(first.batch_shape, second.batch_shape)
    laws = [_in_float64(law).expand(shape or (1,)) for law in (first, second)]
    num_pairs = math.prod(shape)
    parts = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, num_pairs, PAIRS_AT_A_TIME):
        pairs = torch.arange(start, min(start + PAIRS_AT_A_TIME, num_pairs))
        rows = torch.unravel_index(pairs, shape or (1,))
        one, two = (type(law)(law.loc[rows], law.concentration[rows], validate_args=False) for law in laws)
        parts.append(score(one, two))
    return torch.cat(parts).reshape(shape)


def _in_float64(law: TextLaw) -> TextLaw:
    return type(law)(
        F.normalize(law.loc.cpu().double(), dim=-1), law.concentration.cpu().double(), validate_args=False
    )


def _range_of_angles(law: TextLaw) -> tuple[np.ndarray, np.ndarray]:
    """Angles to the mean direction between which laws `(n,)` lie, each of shape `(n,)`."""
    mean, reach = law.mean_resultant_length, STANDARD_DEVIATIONS * law._variances()[0].sqrt()
    low, high = (mean + reach).clamp(max=1).arccos(), (mean - reach).clamp(min=-1).arccos()
    return low.numpy(), high.numpy()


def _density_of_angle(law: TextLaw, angles: np.ndarray) -> np.ndarray:
    """Of laws `(n,)` at angles `(n, m)`, relative to that at the angle of the mean cosine."""
    mean = law.mean_resultant_length.arccos().numpy()[:, None]
    return np.exp(_log_density_of_angle(law, angles) - _log_density_of_angle(law, mean))


def _log_density_of_angle(law: TextLaw, angles: np.ndarray) -> np.ndarray:
    concentration = law.concentration.numpy()[:, None]
    with np.errstate(divide="ignore"):
        around = (law.dim - 2) * np.log(np.sin(angles))
    if isinstance(law, VonMisesFisher):
        return around - 2 * concentration * np.sin(angles / 2) ** 2
    return around + 2 * concentration * np.log(np.cos(angles / 2))


def _pieces(law: TextLaw, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles `(n, nodes)` of a rule between two angles `(n,)`, and the mass of laws `(n,)` at each."""
    width = np.maximum(end - start, 0)[:, None]
    angles = start[:, None] + width * (NODES + 1) / 2
    return angles, WEIGHTS / 2 * width * _density_of_angle(law, angles)


def _edges_of_regions(law: TextLaw, level: float) -> np.ndarray:
    """Angles `(n,)` from the mean directions to the edges of the regions of highest density, of laws `(n,)`."""
    low, high = _range_of_angles(law)
    grid = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, NUM_GRID_POINTS)
    inside = np.cumsum(_density_of_angle(law, grid), axis=-1)
    edges = np.array([np.interp(level * of_law[-1], of_law, own) for of_law, own in zip(inside, grid, strict=True)])
    total = _pieces(law, low, high)[1].sum(axis=-1)
    for _ in range(NEWTON_STEPS):
        excess = _pieces(law, low, edges)[1].sum(axis=-1) - level * total
        edges = np.clip(edges - excess / _density_of_angle(law, edges[:, None])[:, 0], low, high)
    return edges


def _probability_of_cap(law: TextLaw, tilts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """
    The probability of caps about another axis, under laws of shape `(n,)`.

    Args:
        law: the laws.
        tilts (float64, shape `(n,)`): angle between the mean direction and the axis of the cap.
        edges (float64, shape `(n,)`): angle from the axis to the edge of the cap.
    """
    low, high = _range_of_angles(law)
    # The circle at an angle from the mean direction lies in the cap whole, in part, or not at all.
    around = 2 * np.pi - edges - tilts
    whole = ((low, edges - tilts), (around, high))
    inside = sum(_pieces(law, np.clip(start, low, high), np.clip(end, low, high))[1] for start, end in whole)
    start, end = np.abs(edges - tilts), np.minimum(edges + tilts, around)
    angles, mass = _pieces(law, np.clip(start, low, high), np.clip(end, low, high))
    reach = np.sin(tilts)[:, None] * np.sin(angles)
    needed = np.cos(edges)[:, None] - np.cos(tilts)[:, None] * np.cos(angles)
    across = np.clip(needed / np.maximum(reach, np.finfo(np.float64).tiny), -1, 1)
    half = (law.dim - 2) / 2
    inside = inside + mass * betainc(half, half, (1 - across) / 2)
    return inside.sum(axis=-1) / _pieces(law, low, high)[1].sum(axis=-1)
