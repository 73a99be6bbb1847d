"""Exact samplers on the unit hypersphere, written so that nothing cancels for any concentration from 0 to 1e5.

A rotationally symmetric sample is `t mu + sqrt(1-t^2) v`, with the cosine t from its one-dimensional law and v uniform
among the unit vectors orthogonal to mu. The pairs (t, sqrt(1-t^2)) below are ratios of positive numbers: with
`1 - t^2` taken from a rounded t, samples of a large concentration would fall on a grid.
"""

import torch
import torch.nn.functional as F


def uniform_directions(
    shape: torch.Size, *, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Independent uniform unit vectors of shape `shape`, whose last number is the dimension >= 1."""
    return F.normalize(torch.randn(shape, dtype=dtype, device=device, generator=generator), dim=-1)


def power_spherical_cosines(
    concentration: torch.Tensor, dim: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cosine and sine to the mean direction under Power Spherical, each of the shape of `concentration`, differentiable.

    `(1+t)/2` is Beta(b + kappa, b) with b = (d-1)/2 (De Cao & Aziz 2020, arXiv 2006.04437, section 3.1), drawn as two
    Gamma variables: `t = (g - h)/(g + h)`, `sqrt(1-t^2) = 2 sqrt(gh)/(g + h)`.
    """
    half = torch.full_like(concentration, (dim - 1) / 2)
    toward = torch._standard_gamma(half + concentration, generator=generator)
    away = torch._standard_gamma(half, generator=generator)
    total = toward + away
    return (toward - away) / total, 2 * (toward / total).sqrt() * (away / total).sqrt()


def vmf_cosines_on_the_sphere(
    concentration: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cosine and sine to the mean direction under von Mises-Fisher for d = 3, differentiable.

    `1 - t` has the distribution function `(1 - exp(-kappa r)) / (1 - exp(-2 kappa))`, inverted at a uniform number.
    """
    # The law of a smaller concentration, where the quotient would be 0/0, differs from it by less than rounding.
    kappa = torch.clamp(concentration, min=torch.finfo(concentration.dtype).tiny ** 0.5)
    uniform = torch.rand(kappa.shape, dtype=kappa.dtype, device=kappa.device, generator=generator)
    one_minus_cosine = -torch.log1p(uniform * torch.expm1(-2 * kappa)) / kappa
    return 1 - one_minus_cosine, (one_minus_cosine * (2 - one_minus_cosine)).sqrt()


def vmf_cosines(
    concentration: torch.Tensor, dim: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cosine and sine to the mean direction under von Mises-Fisher by rejection, without gradient.

    The method of Wood (1994, "Simulation of the von Mises Fisher distribution") with
    `b = (d-1) / (2 kappa + sqrt(4 kappa^2 + (d-1)^2))`. With its Beta variable drawn as g/(g+h) from two Gamma
    variables and `x = (g-h)/(h + bg)`, the proposal is `t = (h - bg)/(h + bg)`, and it is accepted where
    `ln(uniform) <= (d-1) log1p((1-b) x/2) - 2 kappa b x/(1+b)`, all of whose numbers stay of order d.
    """
    kappa = concentration.detach().flatten()
    cosine, sine = torch.empty_like(kappa), torch.empty_like(kappa)
    pending = torch.arange(len(kappa), device=kappa.device)
    while len(pending) > 0:
        k = kappa[pending]
        b = (dim - 1) / (2 * k + torch.hypot(2 * k, torch.full_like(k, dim - 1)))
        half = torch.full_like(k, (dim - 1) / 2)
        g = torch._standard_gamma(half, generator=generator)
        h = torch._standard_gamma(half, generator=generator)
        total = h + b * g
        x = (g - h) / total
        log_acceptance = (dim - 1) * torch.log1p((1 - b) * x / 2) - 2 * k * b / (1 + b) * x
        uniform = torch.rand(k.shape, dtype=k.dtype, device=k.device, generator=generator)
        accepted = uniform.log() <= log_acceptance
        cosine[pending[accepted]] = ((h - b * g) / total)[accepted]
        sine[pending[accepted]] = (2 * (b * g / total).sqrt() * (h / total).sqrt())[accepted]
        pending = pending[~accepted]
    return cosine.reshape(concentration.shape), sine.reshape(concentration.shape)


def around(
    loc: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Unit vectors at the given angle to `loc` of shape `(*batch, d)`, uniform among these; `cosine` and `sine` have the
    shape `(*sample, *batch)`, the result `(*sample, *batch, d)`.

    They are drawn around plus or minus the first axis and reflected to `loc` (Householder). The sign is that of the
    first coordinate of `loc`, so that the normal of the mirror, `loc` plus or minus the axis, is never short.
    """
    shape = cosine.shape + (loc.shape[-1] - 1,)
    tangent = uniform_directions(shape, dtype=loc.dtype, device=loc.device, generator=generator)
    sign = torch.where(loc[..., :1] < 0, -1.0, 1.0).to(loc.dtype)
    normal = torch.cat([loc[..., :1] + sign, loc[..., 1:]], dim=-1)
    points = torch.cat([-sign * cosine[..., None], sine[..., None] * tangent], dim=-1)
    return points - normal * ((normal * points).sum(-1, keepdim=True) / (1 + loc[..., :1].abs()))
