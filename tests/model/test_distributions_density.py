"""Densities, moments and entropies against quadrature and 50-digit arithmetic."""

import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_asymvlm.model.distributions import PowerSpherical, VonMisesFisher
from modeling_asymvlm.model.distributions_entropy import (
    power_spherical_concentration_divergence,
    power_spherical_log_mode_density,
    power_spherical_log_variance,
    power_spherical_mean_log_shortfall,
    power_spherical_relative_entropy,
    vmf_concentration_divergence,
    vmf_cosine_variance,
    vmf_log_mode_density,
    vmf_mean_one_minus_cosine,
    vmf_relative_entropy,
)
from modeling_asymvlm.model.log_normalizers import uniform_log_density
from tests.support.exact_normalizers import EXACT, LISTED_DIMS, in_fifty_digits


LAWS = {"vmf": VonMisesFisher, "power_spherical": PowerSpherical}
FUNCTIONS = {
    "vmf": (vmf_log_mode_density, vmf_mean_one_minus_cosine, vmf_cosine_variance, vmf_relative_entropy),
    "power_spherical": (
        power_spherical_log_mode_density,
        power_spherical_mean_log_shortfall,
        power_spherical_log_variance,
        power_spherical_relative_entropy,
    ),
}
DIVERGENCES = {
    "vmf": vmf_concentration_divergence,
    "power_spherical": power_spherical_concentration_divergence,
}
CONCENTRATIONS = (1e-4, 3e-3, 0.1, 0.9, 1.0, 7.0, 60.0, 800.0, 2e4, 1e5)
double = {"dtype": torch.float64}


def at_the_mode(law: str) -> float:
    """Logarithm of the density at the mode over its normaliser, for kappa = 1."""
    return 1 if law == "vmf" else mpmath.log(2)


@in_fifty_digits
def exact_functions(law: str, kappa: float, dim: int) -> tuple:
    value, slope, curvature = EXACT[law](kappa, dim)
    with mpmath.workdps(50):
        at_mode = at_the_mode(law)
        return value + kappa * at_mode, slope + at_mode, -curvature, value - kappa * slope


@pytest.mark.parametrize("dim", (*(dim for dim in LISTED_DIMS if dim < 1000), 5, 25, 33, 52))
@pytest.mark.parametrize("law", LAWS)
def test_functions_of_the_concentration_keep_their_relative_precision(law, dim):
    """At small concentrations, these are of first or second order; at large ones, logarithmic or reciprocal."""
    concentration = torch.tensor(CONCENTRATIONS)
    exact = [exact_functions(law, kappa, dim) for kappa in concentration.tolist()]
    for dtype, bounds in ((torch.float64, (1e-13, 2e-13, 1e-12, 1e-13)), (torch.float32, (2e-6, 5e-5, 1e-4, 2e-6))):
        for index, (function, bound) in enumerate(zip(FUNCTIONS[law], bounds, strict=True)):
            computed = function(concentration.to(dtype), dim)
            assert computed.dtype == dtype
            for number, reference in zip(computed.tolist(), exact, strict=True):
                assert abs(number / reference[index] - 1) <= bound, (function.__name__, dtype)


@pytest.mark.parametrize("dim", [2, 3, 8, 512])
@pytest.mark.parametrize("law", LAWS)
def test_derivatives_of_the_functions_of_the_concentration(law, dim):
    concentration = torch.tensor([0.0, 0.3, 2.0, 40.0], **double, requires_grad=True)
    for function in FUNCTIONS[law]:
        assert torch.autograd.gradcheck(lambda kappa, function=function: function(kappa, dim), concentration)
        assert torch.autograd.gradgradcheck(lambda kappa, function=function: function(kappa, dim), concentration)
    other = torch.tensor([0.2, 0.3, 9.0, 44.0], **double, requires_grad=True)
    divergence = DIVERGENCES[law]
    assert torch.autograd.gradcheck(lambda first, second: divergence(first, second, dim), (concentration, other))
    for zero in (FUNCTIONS[law][0], FUNCTIONS[law][3]):
        assert zero(torch.zeros(1, **double), dim).item() == 0


@pytest.mark.parametrize("dim", [2, 3, 8, 64, 512])
@pytest.mark.parametrize("law", LAWS)
def test_divergence_of_concentrations_does_not_cancel(law, dim):
    """From concentrations one part in a million apart, where the terms of the textbook formula agree to 12 digits."""
    pairs = [(kappa, kappa * ratio) for kappa in (1e-3, 0.5, 30.0, 1e4, 1e5) for ratio in (1 + 1e-6, 1.1, 0.8, 3.0)]
    pairs += [(0.0, 1e-3), (0.0, 50.0), (50.0, 0.0), (2.0, 1e5), (1e5, 2.0)]
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-4)):
        first, second = torch.tensor(pairs, **double).to(dtype).unbind(-1)
        computed = DIVERGENCES[law](first, second, dim)
        for number, a, b in zip(computed.tolist(), first.tolist(), second.tolist(), strict=True):
            with mpmath.workdps(50):
                at_a, slope, _ = EXACT[law](a, dim)
                exact = at_a - EXACT[law](b, dim)[0] + slope * (mpmath.mpf(b) - mpmath.mpf(a))
            assert abs(number - exact) <= bound * exact, (a, b, float(exact))
    same = torch.tensor(CONCENTRATIONS)
    assert DIVERGENCES[law](same, same, dim).eq(0).all()


def angles(dim: int, concentration: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and logarithms of weights of a Gauss-Legendre rule for the angle to the mean direction."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(400))
    nodes, log_weights = (nodes + 1) / 2, (weights / 2).log()
    if concentration < 50:  # graded towards the antipode, where the Power Spherical density has a cusp
        angle = math.pi * (1 - nodes**6)
        log_weights = log_weights + (6 * math.pi * nodes**5).log()
    else:  # over some twenty standard deviations
        end = min(math.pi, 20 * math.sqrt(2 / (concentration + dim - 2)))
        angle, log_weights = end * nodes, log_weights + math.log(end)
    log_area = -uniform_log_density(dim - 1) if dim > 2 else math.log(2)
    return angle, log_weights + (dim - 2) * angle.sin().log() + log_area


@pytest.mark.parametrize("concentration", [0.0, 0.4, 1.0, 12.0, 300.0, 1e5])
@pytest.mark.parametrize("dim", [2, 3, 5, 64])
@pytest.mark.parametrize("law", LAWS)
def test_density_integrates_to_one_and_gives_the_moments(law, dim, concentration):
    """Over the angle, with the area of the parallel of latitude as weight."""
    angle, log_weight = angles(dim, concentration)
    loc = F.normalize(torch.arange(1.0, dim + 1, **double), dim=0)
    across = F.normalize(torch.ones(dim, **double) - loc.sum() * loc, dim=0)
    value = angle.cos()[:, None] * loc + angle.sin()[:, None] * across
    distribution = LAWS[law](loc, concentration)
    log_prob = distribution.log_prob(value)
    mass = (log_prob + log_weight).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-11)
    mean = (mass * angle.cos()).sum().item()
    one_minus_mean = 2 * (mass * (angle / 2).sin().square()).sum().item()
    assert distribution.mean_resultant_length.item() == pytest.approx(mean, abs=1e-11)
    torch.testing.assert_close(distribution.mean, mean * loc, rtol=0, atol=1e-11)
    along = (mass * (angle.cos() - 1 + one_minus_mean).square()).sum()
    tangential = (mass * angle.sin().square()).sum() / (dim - 1)
    covariance = tangential * torch.eye(dim, **double) + (along - tangential) * torch.outer(loc, loc)
    torch.testing.assert_close(distribution.covariance_matrix, covariance, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(distribution.variance, covariance.diagonal(), rtol=1e-9, atol=1e-11)
    for direction, variance in ((loc, along), (across, tangential)):  # the small eigenvalues, relative to themselves
        form = direction @ distribution.covariance_matrix @ direction
        assert form.item() == pytest.approx(variance.item(), rel=1e-5, abs=1e-15)
    entropy = -(mass * torch.where(mass > 0, log_prob, 0.0)).sum().item()
    assert distribution.entropy().item() == pytest.approx(entropy, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("dim", [3, 512])
@pytest.mark.parametrize("law", LAWS)
def test_float32_log_density_at_a_large_concentration(law, dim):
    """Near the mode, kappa times the cosine and the normaliser are of size 1e5 and cancel but for some nats."""
    generator = torch.Generator().manual_seed(1)
    loc = F.normalize(torch.randn(dim, generator=generator), dim=0)
    value = F.normalize(loc + 3e-3 * torch.randn(200, dim, generator=generator) / dim**0.5, dim=-1)
    computed = LAWS[law](loc, 1e5).log_prob(value)
    exact = LAWS[law](F.normalize(loc.double(), dim=0), 1e5).log_prob(F.normalize(value.double(), dim=-1))
    torch.testing.assert_close(computed.double(), exact, rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize("dim", [2, 3, 8, 512])
@pytest.mark.parametrize("law", LAWS)
def test_density_is_symmetric_about_the_mode_and_falls_from_it(law, dim):
    angle = torch.linspace(0, math.pi, 50, **double)
    loc, across = torch.eye(dim, **double)[:2]
    log_prob = LAWS[law](loc, 2.5).log_prob(angle.cos()[:, None] * loc + angle.sin()[:, None] * across)
    mirrored = LAWS[law](loc, 2.5).log_prob(angle.cos()[:, None] * loc - angle.sin()[:, None] * across)
    torch.testing.assert_close(log_prob[:-1], mirrored[:-1], rtol=1e-12, atol=1e-12)
    assert torch.all(log_prob.diff() < 0)
