"""Maximum likelihood for the von Mises-Fisher and Power Spherical laws.

Given the mean direction, the concentration solves `H'(kappa) = c`, where `H'` is that of `relative_entropy.py` and c
the mean of `1 - t` (von Mises-Fisher) or of `ln 2 - ln(1+t)` (Power Spherical), from differences of unit vectors, so
that nothing is lost where the samples lie close together. H' is decreasing and convex: Newton's steps from a point
below the solution rise to it without overshooting.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .distributions_entropy import (
    power_spherical_log_variance,
    power_spherical_mean_log_shortfall,
    vmf_cosine_variance,
    vmf_mean_one_minus_cosine,
)


NEWTON_STEPS = 12
MAX_DIRECTION_STEPS = 200

_Moment = Callable[[torch.Tensor, int], torch.Tensor]


@torch.no_grad()
def fit_vmf(samples: torch.Tensor, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean direction `(*batch, d)` and concentration `(*batch,)` of highest likelihood (Mardia & Jupp, "Directional
    Statistics", 2000, 10.3.1).

    Args:
        samples (`torch.Tensor` of shape `(n, *batch, d)`): unit vectors of dtype float32 or float64.
        weights (`torch.Tensor` of shape `(n,)` or `(n, *batch)`, *optional*): non-negative, equal if not given.

    Raises:
        ValueError: if the samples of a batch element all coincide, where the likelihood has no maximum.
    """
    samples, weights = _normalized(samples, weights)
    dim = samples.shape[-1]
    loc = _direction((weights[..., None] * samples).sum(0))
    mean_one_minus_cosine = _check_spread((weights * (samples - loc).square().sum(-1)).sum(0) / 2)
    # From the upper bound kappa / (b + sqrt(b^2 + kappa^2)) >= A_d with b = (d-1)/2, see `special.py`.
    length = (1 - mean_one_minus_cosine).clamp(min=0)
    start = (dim - 1) * length / (mean_one_minus_cosine * (2 - mean_one_minus_cosine))
    return loc, _newton(start, mean_one_minus_cosine, dim, vmf_mean_one_minus_cosine, vmf_cosine_variance)


@torch.no_grad()
def fit_power_spherical(
    samples: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    As [`fit_vmf`] for Power Spherical. Its direction has no closed form: scoring steps along the sphere, shortened
    where they would lower the likelihood, alternate with Newton's steps for the concentration.
    """
    samples, weights = _normalized(samples, weights)
    dim = samples.shape[-1]
    loc = _direction((weights[..., None] * samples).sum(0))
    shortfall = _check_spread(_mean_log_shortfall(loc, samples, weights))
    step = torch.ones_like(shortfall)
    tolerance = 4 * torch.finfo(samples.dtype).eps
    for _ in range(MAX_DIRECTION_STEPS):
        concentration = _power_spherical_concentration(shortfall, dim)
        one_plus_cosine = (samples + loc).square().sum(-1) / 2
        pulls = weights / one_plus_cosine.clamp(min=torch.finfo(samples.dtype).tiny)
        score = (pulls[..., None] * samples).sum(0)
        score = score - (score * loc).sum(-1, keepdim=True) * loc
        # Mean curvature of -mean ln(1 + cosine) along the sphere: expected for d >= 3; for d = 2, where that may be
        # infinite, observed.
        curvature = pulls.sum(0) if dim == 2 else concentration / (2 * concentration + (dim - 3))
        curvature = torch.where(curvature > 0, curvature, torch.ones_like(curvature))
        move = (step / curvature)[..., None] * score
        candidate = _direction(loc + move)
        candidate_shortfall = _mean_log_shortfall(candidate, samples, weights)
        better = candidate_shortfall < shortfall
        if not bool((better & (move.square().sum(-1) > tolerance**2)).any() | (~better & (step > 1e-3)).any()):
            break
        loc = torch.where(better[..., None], candidate, loc)
        shortfall = torch.where(better, candidate_shortfall, shortfall)
        step = torch.where(better, (2 * step).clamp(max=1), step / 4)
    return loc, _power_spherical_concentration(shortfall, dim)


def _power_spherical_concentration(shortfall: torch.Tensor, dim: int) -> torch.Tensor:
    """The maximum over kappa >= 0; it lies at 0 where the samples spread wider than uniform ones."""
    half = (dim - 1) / 2
    # From H' > ln(1 + b / (kappa + b)), the first term of its Stirling form.
    start = (half / torch.expm1(shortfall) - half).clamp(min=0)
    return _newton(start, shortfall, dim, power_spherical_mean_log_shortfall, power_spherical_log_variance)


def _newton(start: torch.Tensor, target: torch.Tensor, dim: int, slope: _Moment, variance: _Moment) -> torch.Tensor:
    concentration = start
    for _ in range(NEWTON_STEPS):
        step = (slope(concentration, dim) - target) / variance(concentration, dim)
        concentration = (concentration + step).clamp(min=0)
    return concentration


def _mean_log_shortfall(loc: torch.Tensor, samples: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean of ln 2 - ln(1 + cosine)."""
    ratio = (samples - loc).square().sum(-1) / (samples + loc).square().sum(-1)
    return (weights * torch.log1p(ratio)).sum(0)


def _direction(vectors: torch.Tensor) -> torch.Tensor:
    first_axis = (torch.arange(vectors.shape[-1], device=vectors.device) == 0).to(vectors.dtype)
    return F.normalize(torch.where((vectors == 0).all(-1, keepdim=True), first_axis, vectors), dim=-1)


def _check_spread(spread: torch.Tensor) -> torch.Tensor:
    if not bool((spread > torch.finfo(spread.dtype).eps ** 1.5).all()):
        raise ValueError(
            "The samples of a batch element all coincide: the likelihood grows without bound in the concentration. "
            "Fit to samples of at least two directions."
        )
    return spread


def _normalized(samples: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    if samples.ndim < 2 or samples.shape[0] == 0 or samples.shape[-1] < 2:
        raise ValueError(f"samples must have shape (n, *batch, d) with n >= 1 and d >= 2, got {tuple(samples.shape)}.")
    if samples.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"samples must be of dtype float32 or float64, got {samples.dtype}; convert them first.")
    shape = samples.shape[:-1]
    if weights is None:
        return samples, samples.new_full(shape, 1 / shape[0])
    if weights.shape not in (shape, shape[:1]):
        raise ValueError(
            f"weights must have shape {tuple(shape[:1])} or {tuple(shape)}, one for each sample, "
            f"got {tuple(weights.shape)}."
        )
    weights = weights.to(samples.dtype).reshape(weights.shape + (1,) * (len(shape) - weights.ndim)).expand(shape)
    total = weights.sum(0)
    if not bool((weights >= 0).all() & (total > 0).all() & total.isfinite().all()):
        raise ValueError(
            "weights must be finite and non-negative with a positive sum; drop samples of unknown weight."
        )
    return samples, weights / total
