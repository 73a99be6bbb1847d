"""Samplers against exact laws of the cosine, moments and cells of the sphere; pathwise gradients by differences.

Every case has a seed of its own. A statistic is rejected at level 1e-6; with the some 400 of this file, one or more
of them would fail a correct sampler with probability 4e-4, had the seeds not been fixed.
"""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from modeling_asymvlm.model.distributions import HypersphericalUniform, PowerSpherical, VonMisesFisher
from modeling_asymvlm.model.distributions_base import unit_sphere


LAWS = (VonMisesFisher, PowerSpherical)
DIMS = (2, 3, 8, 512)
CONCENTRATIONS = (0.0, 1.0, 40.0, 1e5)
LEVEL = 1e-6
SIGMAS = float(scipy.stats.norm.isf(LEVEL / 2))
NUM_SAMPLES = 8000
CASES = [(law, dim, kappa) for law in LAWS for dim in DIMS for kappa in CONCENTRATIONS]
double = {"dtype": torch.float64}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distribution_of_the_angle(law, dim: int, concentration: float):
    """Distribution function of the angle to the mean direction, by the trapezoidal rule on its density."""
    deviation = math.sqrt(2 / max(concentration + dim - 2, 1e-3))
    centre = math.sqrt((dim - 2) / (concentration / 2 + dim)) if dim > 2 else 0.0
    angle = np.linspace(0, min(math.pi, 2 * centre + 20 * deviation), 100_001)
    with np.errstate(divide="ignore"):
        if law is VonMisesFisher:
            log_density = -2 * concentration * np.sin(angle / 2) ** 2
        else:
            log_density = 2 * concentration * np.log(np.cos(angle / 2)) if concentration else 0 * angle
        log_density = log_density + ((dim - 2) * np.log(np.sin(angle)) if dim > 2 else 0)
    density = np.exp(log_density - log_density.max())
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return lambda x: np.interp(x, angle, cumulative / cumulative[-1])


def assert_mean(draws: torch.Tensor, expected: float) -> None:
    error = draws.std().item() / draws.numel() ** 0.5
    assert abs(draws.mean().item() - expected) <= SIGMAS * error + 1e-12, (draws.mean().item(), expected, error)


def assert_goodness_of_fit(samples: torch.Tensor, loc: torch.Tensor, cdf) -> None:
    """Chi-squared over cells of equal probability: ten bands of the angle, cut by up to three planes through loc."""
    dim = loc.shape[-1]
    angle = 2 * torch.atan2((samples - loc).norm(dim=-1), (samples + loc).norm(dim=-1))
    uniform = cdf(angle.numpy())
    assert scipy.stats.kstest(uniform, "uniform").pvalue > LEVEL
    bands = np.clip((10 * uniform).astype(int), 0, 9)
    planes = min(3, dim - 1)
    frame = torch.cat([loc[:, None], torch.randn(dim, planes, generator=seeded(dim), **double)], dim=-1)
    normals = torch.linalg.qr(frame).Q[:, 1:]
    signs = (samples @ normals > 0).numpy() @ (2 ** np.arange(planes))
    counts = np.bincount(bands * 2**planes + signs, minlength=10 * 2**planes)
    assert scipy.stats.chisquare(counts).pvalue > LEVEL


@pytest.mark.parametrize("index", range(len(CASES)))
def test_samples_have_the_law(index):
    law, dim, concentration = CASES[index]
    loc = F.normalize(torch.randn(dim, generator=seeded(1000 + index)), dim=0)
    if index % 4 == 1:
        loc = F.one_hot(torch.tensor(0), dim).float() * (-1) ** (index // 4)
    distribution = law(loc, concentration)
    samples = distribution.sample((NUM_SAMPLES,), generator=seeded(2000 + index))
    assert samples.dtype == torch.float32 and torch.all(unit_sphere.check(samples))
    samples, loc = samples.double(), F.normalize(loc.double(), dim=0)
    assert_goodness_of_fit(samples, loc, distribution_of_the_angle(law, dim, concentration))
    exact = law(loc, concentration)
    centred = samples - exact.mean
    # Mahalanobis distance of the mean, chi-squared with d degrees of freedom.
    distance = NUM_SAMPLES * centred.mean(0) @ torch.linalg.solve(exact.covariance_matrix, centred.mean(0))
    assert LEVEL < scipy.stats.chi2.sf(distance.item(), dim) < 1 - LEVEL
    # Covariance: variances along the mean direction, along five others, and one covariance.
    others = F.normalize(torch.randn(dim, 5, generator=seeded(3000 + index), **double), dim=0)
    for direction in (loc, *others.T):
        variance = direction @ exact.covariance_matrix @ direction
        assert_mean((centred @ direction).square() / variance, 1)
    assert_mean((centred @ others[:, 0]) * (centred @ loc), (others[:, 0] @ exact.covariance_matrix @ loc).item())


@pytest.mark.parametrize("dim", DIMS)
def test_uniform_samples(dim):
    samples = HypersphericalUniform(dim, dtype=torch.float64).sample((NUM_SAMPLES,), generator=seeded(4000 + dim))
    loc = F.normalize(torch.randn(dim, generator=seeded(4100 + dim), **double), dim=0)
    assert_goodness_of_fit(samples, loc, distribution_of_the_angle(VonMisesFisher, dim, 0.0))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("law", LAWS)
def test_seed_decides_and_batch_elements_differ(law, dim):
    distribution = law(F.normalize(torch.ones(dim), dim=0), torch.tensor([2.0, 2.0]))
    first, again, other = (distribution.sample((100,), generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.any((first[:, 0] == first[:, 1]).all(-1))
    torch.manual_seed(3)
    first = distribution.sample((10,))
    torch.manual_seed(3)
    assert torch.equal(first, distribution.sample((10,)))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("law", LAWS)
def test_samples_are_safe_at_the_poles_and_at_extreme_concentrations(law, dim, sign):
    loc = sign * torch.eye(dim)[0]
    near = F.normalize(loc + 1e-7 * torch.ones(dim), dim=0)
    concentration = torch.tensor([0.0, 1e-30, 1e-6, 1e5, 1e8])
    for each in (loc, near):
        samples = law(each, concentration).sample((2000,), generator=seeded(5000 + dim))
        assert torch.all(samples.isfinite()) and torch.all(unit_sphere.check(samples))
        # Uniform: the mean cosine is zero. Concentrated: the mean of 1 - cosine, whose distribution is near a Gamma.
        assert abs((samples[:, 0] @ loc).mean().item()) < SIGMAS / (2000 * dim) ** 0.5
        scale = 2 if law is PowerSpherical else 1
        for index in (3, 4):
            spread = (samples[:, index] - each).square().sum(-1) / 2 * concentration[index] / scale
            tolerance = SIGMAS * ((dim - 1) / 2 / 2000) ** 0.5
            assert abs(spread.mean().item() - (dim - 1) / 2) < tolerance + 0.005 * (dim - 1)


def test_no_grid_in_float32_at_a_large_concentration():
    """With 1 - t^2 from a rounded cosine, the 20,000 samples would share some hundred angles."""
    for law in LAWS:
        for dim in (2, 3):
            samples = law(torch.eye(dim)[0], 1e5).sample((20_000,), generator=seeded(6000 + dim))
            assert samples[:, 1].abs().unique().numel() > 15_000


@pytest.mark.parametrize("dim", [2, 4, 512])
def test_only_exact_pathwise_gradients_are_offered(dim):
    distribution = VonMisesFisher(torch.eye(dim)[1], torch.tensor(3.0, requires_grad=True))
    assert not distribution.has_rsample and not distribution.sample().requires_grad
    with pytest.raises(NotImplementedError, match=f"VonMisesFisher in dimension {dim} is sampled by rejection"):
        distribution.rsample()
    assert VonMisesFisher(torch.eye(3)[1], 3.0).has_rsample
    assert PowerSpherical(torch.eye(dim)[1], 3.0).has_rsample


@pytest.mark.parametrize(("law", "dim"), [(VonMisesFisher, 3), *((PowerSpherical, dim) for dim in DIMS)])
def test_pathwise_gradient_in_the_direction_by_finite_differences(law, dim):
    """Of each sample, for the same random numbers."""
    raw = torch.randn(4, dim, generator=seeded(7000 + dim), **double).requires_grad_()

    def draw(raw):
        return law(F.normalize(raw, dim=-1), 3.0, validate_args=False).rsample(generator=seeded(7100 + dim))

    assert torch.autograd.gradcheck(draw, raw, fast_mode=dim > 100)


@pytest.mark.parametrize("concentration", [0.3, 4.0, 200.0])
@pytest.mark.parametrize(("law", "dim"), [(VonMisesFisher, 3), *((PowerSpherical, dim) for dim in DIMS)])
def test_pathwise_gradient_in_the_concentration_by_finite_differences(law, dim, concentration):
    """Of exact expectations: of a coordinate, and of its square, which no shift of the mean alone explains."""
    loc = F.normalize(torch.randn(dim, generator=seeded(8000 + dim), **double), dim=0)
    seed = 8100 + 10 * dim + int(concentration)
    leaf = torch.full((4000,), concentration, **double, requires_grad=True)
    samples = law(loc, leaf).rsample(generator=seeded(seed))

    def moments(kappa):
        exact = law(loc, kappa)
        return exact.mean @ loc, loc @ exact.covariance_matrix @ loc + (exact.mean @ loc) ** 2

    step = 1e-4 * concentration
    for draws, above, below in zip(
        (samples @ loc, (samples @ loc).square()),
        moments(concentration + step),
        moments(concentration - step),
        strict=True,
    ):
        (pathwise,) = torch.autograd.grad(draws.sum(), leaf, retain_graph=True)
        assert_mean(pathwise, ((above - below) / (2 * step)).item())


def test_pathwise_gradient_by_finite_differences_of_each_sample_on_the_sphere():
    concentration = torch.tensor([0.2, 2.0, 50.0], **double, requires_grad=True)
    loc = F.normalize(torch.randn(3, generator=seeded(9000), **double), dim=0)
    assert torch.autograd.gradcheck(
        lambda kappa: VonMisesFisher(loc, kappa, validate_args=False).rsample(generator=seeded(9001)), concentration
    )
