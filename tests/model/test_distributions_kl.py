"""Kullback-Leibler divergences against Monte Carlo, quadrature and each other; products of densities."""

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import kl_divergence

from modeling_asymvlm.model.distributions import HypersphericalUniform, PowerSpherical, VonMisesFisher, product
from modeling_asymvlm.model.distributions_kl import power_spherical_from_power_spherical
from tests.support.exact_normalizers import in_fifty_digits


LAWS = (VonMisesFisher, PowerSpherical)
DIMS = (2, 3, 8, 512)
PAIRS = ((VonMisesFisher, VonMisesFisher), (PowerSpherical, PowerSpherical), (PowerSpherical, VonMisesFisher))
# Two-sided: each of the 36 Monte Carlo statistics below would be rejected by chance with probability 6e-7.
SIGMAS = 5
every_dim = pytest.mark.parametrize("dim", DIMS)
double = {"dtype": torch.float64}


def directions(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed), **double), dim=-1)


def assert_mean(draws: torch.Tensor, expected: torch.Tensor) -> None:
    """`draws` of shape (n, *batch) have the mean `expected`."""
    error = draws.std(0) / draws.shape[0] ** 0.5
    assert torch.all((draws.mean(0) - expected).abs() <= SIGMAS * error + 1e-10), (draws.mean(0), expected, error)


@pytest.mark.parametrize("index", range(len(LAWS) * len(DIMS)))
def test_entropy_by_monte_carlo(index):
    law, dim = LAWS[index % 2], DIMS[index // 2]
    distribution = law(directions(4, dim, seed=100 + index), torch.tensor([0.0, 0.8, 40.0, 1e5], **double))
    value = distribution.sample((4000,), generator=torch.Generator().manual_seed(200 + index))
    assert_mean(-distribution.log_prob(value), distribution.entropy())


@pytest.mark.parametrize("index", range(len(PAIRS) * len(DIMS)))
def test_divergence_by_monte_carlo(index):
    (first_law, second_law), dim = PAIRS[index % 3], DIMS[index // 3]
    loc = directions(2, 4, dim, seed=300 + index)
    loc[1, 3] = F.normalize(loc[0, 3] + 0.1 * loc[1, 3], dim=-1)
    first = first_law(loc[0], torch.tensor([0.6, 9.0, 30.0, 900.0], **double))
    second = second_law(loc[1], torch.tensor([3.0, 0.0, 12.0, 800.0], **double))
    value = first.sample((4000,), generator=torch.Generator().manual_seed(400 + index))
    divergence = kl_divergence(first, second)
    assert torch.all(divergence > 0)
    assert_mean(first.log_prob(value) - second.log_prob(value), divergence)


@pytest.mark.parametrize("index", range(len(LAWS) * len(DIMS)))
def test_divergence_from_and_to_the_uniform_law(index):
    law, dim = LAWS[index % 2], DIMS[index // 2]
    distribution = law(directions(3, dim, seed=500 + index), torch.tensor([0.0, 0.8, 40.0], **double))
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    to_uniform, from_uniform = kl_divergence(distribution, uniform), kl_divergence(uniform, distribution)
    torch.testing.assert_close(to_uniform, uniform.entropy() - distribution.entropy(), rtol=1e-10, atol=1e-12)
    value = uniform.sample((8000,), generator=torch.Generator().manual_seed(600 + index))[:, None]
    assert_mean(uniform.log_prob(value) - distribution.log_prob(value), from_uniform)
    # The same law as one of concentration 0, in every formula that takes one.
    zero = law(directions(dim, seed=700 + index), 0.0)
    torch.testing.assert_close(kl_divergence(distribution, zero), to_uniform, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kl_divergence(zero, distribution), from_uniform, rtol=1e-12, atol=1e-14)
    assert to_uniform[0] == from_uniform[0] == kl_divergence(uniform, uniform) == 0


@every_dim
@pytest.mark.parametrize("laws", PAIRS)
def test_shapes_and_equal_laws(laws, dim):
    first = laws[0](directions(3, 1, dim, seed=800), 4.0)
    second = laws[1](directions(2, dim, seed=801), torch.tensor([1.0, 50.0], **double))
    divergence = kl_divergence(first, second)
    assert divergence.shape == (3, 2)
    torch.testing.assert_close(
        divergence[2, 1], kl_divergence(laws[0](first.loc[2, 0], 4.0), laws[1](second.loc[1], 50.0))
    )
    uniform = HypersphericalUniform(dim).expand((5, 1))
    assert kl_divergence(second, uniform).shape == kl_divergence(uniform, second).shape == (5, 2)
    if laws[0] is laws[1]:
        assert kl_divergence(second, second).eq(0).all()
    with pytest.raises(ValueError, match=f"same sphere, got dimensions {dim} and {dim + 1}"):
        kl_divergence(first, laws[1](directions(dim + 1, seed=802), 1.0))


@every_dim
@pytest.mark.parametrize("laws", PAIRS)
def test_divergence_is_differentiable(laws, dim):
    raw = torch.randn(2, dim, generator=torch.Generator().manual_seed(803 + dim), **double).requires_grad_()
    concentration = torch.tensor([7.3, 4.0], **double, requires_grad=True)

    def divergence(raw, concentration):
        first, second = (
            law(F.normalize(raw[i], dim=-1), concentration[i], validate_args=False) for i, law in enumerate(laws)
        )
        return kl_divergence(first, second)

    assert torch.autograd.gradcheck(divergence, (raw, concentration), fast_mode=dim > 100, atol=1e-5, rtol=1e-3)


@in_fifty_digits
def exact_mean_log(kappa: float, cosine: float, dim: int):
    """E[ln(1 + mu_2'x)] under Power Spherical: over each parallel in closed form, over the angle by quadrature."""
    mpmath.mp.dps = 25
    r, root = mpmath.mpf(cosine), mpmath.sqrt(1 - mpmath.mpf(cosine) ** 2)

    def over_parallel(t):
        a, b = 1 + r * t, root * mpmath.sqrt(1 - t * t)
        if dim == 2:
            return mpmath.log((a + b) * (a - b)) / 2 if abs(a) > b else mpmath.mpf(0)
        if dim == 3:
            return mpmath.log((a + mpmath.fabs(t + r)) / 2)
        if b == 0:
            return mpmath.log(a)
        low = (a - b) * mpmath.log(a - b) if a > b else 0
        return ((a + b) * mpmath.log(a + b) - low) / (2 * b) - 1

    def density(angle):
        return mpmath.cos(angle / 2) ** (2 * kappa) * mpmath.sin(angle) ** (dim - 2)

    ends = [0, mpmath.pi - mpmath.acos(r), mpmath.pi]
    mass = mpmath.quad(density, ends)
    return mpmath.quad(lambda angle: density(angle) * over_parallel(mpmath.cos(angle)), ends) / mass


@pytest.mark.parametrize("kappa", [0.3, 0.5, 1.0, 2.0, 7.6, 40.2])
@pytest.mark.parametrize("dim", [2, 3, 4])
def test_series_between_power_spherical_laws_within_its_stated_bound(dim, kappa):
    for cosine in (0.97, 0.2, -0.9):
        loc = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]], **double)
        loc = F.pad(loc, (0, dim - 2))
        separation = (loc[0] - loc[1]).square().sum() / 2
        first, second = torch.tensor(kappa, **double), torch.tensor(2.5, **double)
        divergence, bound = power_spherical_from_power_spherical(first, second, separation, dim)
        laws = PowerSpherical(loc[0], first), PowerSpherical(loc[1], second)
        at_peak = laws[1].log_prob(laws[1].loc) - 2.5 * torch.tensor(2.0, **double).log()
        cross_entropy = -at_peak.item() - 2.5 * float(exact_mean_log(kappa, cosine, dim))
        error = abs(divergence.item() - (cross_entropy - laws[0].entropy().item()))
        assert error <= bound.item() + 1e-11  # of the quadrature
        assert bound.item() <= (1e-4 if dim == 2 and kappa < 1 else 1e-9)
    torch.testing.assert_close(divergence, kl_divergence(*laws), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dim", [3, 8, 512])
def test_series_bound_is_at_rounding_for_every_concentration_of_embeddings(dim):
    first = torch.tensor([0.5, 1.3, 5.0, 300.5, 2e3, 1e5], **double)
    separation = torch.tensor([0.0, 1e-6, 0.3, 1.0, 1.9, 2.0], **double)[:, None]
    divergence, bound = power_spherical_from_power_spherical(first, first.new_tensor(50.0), separation, dim)
    assert divergence.shape == bound.shape == (6, 6)
    assert torch.all(bound <= 1e-9 * divergence.clamp(min=1)) and torch.all(bound[0] == 0)
    single = power_spherical_from_power_spherical(first.float(), torch.tensor(50.0), separation.float(), dim)[0]
    torch.testing.assert_close(single[:5].double(), divergence[:5], rtol=3e-4, atol=1e-4)


@every_dim
def test_divergence_of_close_directions_at_a_large_concentration(dim):
    """To first order, kappa/2 times the squared angle times the mean resultant length, or half of it."""
    loc = directions(dim, seed=900 + dim).float()
    across = directions(dim, seed=950 + dim).float()
    moved = F.normalize(loc + 1e-4 * F.normalize(across - (across * loc).sum() * loc, dim=0), dim=0)
    for law, curvature in ((VonMisesFisher, 1.0), (PowerSpherical, 0.5)):
        first, second = law(loc, 1e5), law(moved, 1e5)
        expected = 1e5 * 1e-8 / 2 * curvature * (first.mean_resultant_length.item() if law is VonMisesFisher else 1)
        assert kl_divergence(first, second).item() == pytest.approx(expected, rel=5e-3)


@every_dim
@pytest.mark.parametrize("law", LAWS)
def test_product_adds_natural_parameters(law, dim):
    first = law(directions(3, 1, dim, seed=1000), torch.tensor([0.0, 2.0], **double))
    second, third = law(directions(2, dim, seed=1001), 40.0), law(directions(dim, seed=1002), 7.0)
    fused = product(first, second, third, HypersphericalUniform(dim).expand((3, 1)))
    assert type(fused) is law and fused.batch_shape == (3, 2)
    eta = first.natural_parameter + second.natural_parameter + third.natural_parameter
    torch.testing.assert_close(fused.natural_parameter, eta)
    grouped = product(third, product(second, first))
    torch.testing.assert_close(grouped.natural_parameter, eta)
    torch.testing.assert_close(product(third).natural_parameter, third.natural_parameter)


@every_dim
def test_product_of_von_mises_fisher_densities_is_exact(dim):
    laws = [VonMisesFisher(directions(dim, seed=1100 + i), kappa) for i, kappa in enumerate((2.0, 30.0, 0.0, 500.0))]
    value = directions(50, dim, seed=1110)
    difference = sum(law.log_prob(value) for law in laws) - product(*laws).log_prob(value)
    torch.testing.assert_close(difference, difference[:1].expand(50), rtol=1e-10, atol=1e-9)


@every_dim
def test_product_of_power_spherical_densities_of_equal_direction_is_exact(dim):
    loc, value = directions(dim, seed=1200), directions(50, dim, seed=1201)
    laws = [PowerSpherical(loc, kappa) for kappa in (0.5, 3.0, 80.0)]
    difference = sum(law.log_prob(value) for law in laws) - product(*laws).log_prob(value)
    torch.testing.assert_close(difference, difference[:1].expand(50), rtol=1e-10, atol=1e-9)
    opposite = product(PowerSpherical(loc, 4.0), PowerSpherical(-loc, 4.0))
    assert opposite.concentration == 0


def test_projection_of_a_product_keeps_the_harmonics_of_degree_one():
    """The integral of z ln p(z) over the circle, by the trapezoidal rule off the antipodes, where ln p is infinite."""
    angle = (torch.arange(200_000, **double) + 0.5) * (2 * torch.pi / 200_000)
    value = torch.stack([angle.cos(), angle.sin()], dim=-1)
    laws = [PowerSpherical(directions(2, seed=1300 + i), kappa) for i, kappa in enumerate((1.5, 4.0, 9.0))]
    of_product = (sum(law.log_prob(value) for law in laws)[:, None] * value).mean(0)
    of_projection = (product(*laws).log_prob(value)[:, None] * value).mean(0)
    torch.testing.assert_close(of_projection, of_product, rtol=0, atol=1e-3)
    assert of_product.norm() > 1


def test_product_refuses_what_has_none():
    uniform = HypersphericalUniform(3)
    assert isinstance(product(uniform, uniform.expand((2,))), HypersphericalUniform)
    vmf, power_spherical = (law(torch.tensor([0.0, 0.0, 1.0]), 2.0) for law in LAWS)
    for unsuitable in ((), (vmf, torch.ones(3)), (vmf, power_spherical)):
        with pytest.raises(TypeError, match="product takes one or more|is of neither kind"):
            product(*unsuitable)
    with pytest.raises(ValueError, match=r"must share a dimension, got \[3, 4\]"):
        product(vmf, HypersphericalUniform(4))
