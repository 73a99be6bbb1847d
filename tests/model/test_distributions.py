"""The contract of torch.distributions, table-driven over both laws and d in {2, 3, 8, 512}."""

import copy
import math
import pickle

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.transforms import Transform

from modeling_asymvlm.model.distributions import HypersphericalUniform, PowerSpherical, VonMisesFisher
from modeling_asymvlm.model.distributions_base import unit_sphere


LAWS = (VonMisesFisher, PowerSpherical)
DIMS = (2, 3, 8, 512)
every_law = pytest.mark.parametrize("law", LAWS)
every_dim = pytest.mark.parametrize("dim", DIMS)
double = {"dtype": torch.float64}


def directions(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


@every_law
@every_dim
@pytest.mark.parametrize("batch_shape", [(), (4,), (2, 4)])
def test_shapes(law, dim, batch_shape):
    distribution = law(directions(*batch_shape, dim, seed=1), torch.full(batch_shape, 3.0, **double))
    assert (distribution.batch_shape, distribution.event_shape) == (batch_shape, (dim,))
    for moment in (distribution.mean, distribution.mode, distribution.variance, distribution.stddev):
        assert moment.shape == batch_shape + (dim,)
    assert distribution.covariance_matrix.shape == batch_shape + (dim, dim)
    assert distribution.entropy().shape == distribution.mean_resultant_length.shape == batch_shape
    assert distribution.natural_parameter.shape == batch_shape + (dim,)
    for sample_shape in ((), (5,), (0,), (5, 1)):
        sample = distribution.sample(sample_shape)
        assert sample.shape == sample_shape + batch_shape + (dim,)
        assert sample.dtype == torch.float64 and not sample.requires_grad
        assert torch.all(unit_sphere.check(sample))
        assert distribution.log_prob(sample).shape == sample_shape + batch_shape


@every_law
@every_dim
def test_broadcasting_of_arguments_and_values(law, dim):
    loc, concentration = directions(3, 1, dim, seed=2), torch.tensor([0.0, 1.0, 2.5, 70.0], **double)
    distribution = law(loc, concentration)
    assert distribution.batch_shape == (3, 4)
    value = directions(6, 1, 4, dim, seed=3)
    expected = [[law(loc[i, 0], concentration[j]).log_prob(value[:, 0, j]) for j in range(4)] for i in range(3)]
    expected = torch.stack([torch.stack(row, -1) for row in expected], -2)
    torch.testing.assert_close(distribution.log_prob(value), expected, rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(law(loc[0, 0], 2.5).entropy(), distribution.entropy()[0, 2], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="[Ss]hape mismatch|could not be broadcast|match"):
        law(loc, torch.ones(2, 3))


@every_law
@every_dim
def test_expand(law, dim):
    distribution = law(directions(dim, seed=4), torch.tensor(4.0, **double))
    expanded = distribution.expand((2, 3))
    assert type(expanded) is law and (expanded.batch_shape, expanded.event_shape) == ((2, 3), (dim,))
    value = directions(5, 2, 3, dim, seed=5)
    torch.testing.assert_close(expanded.log_prob(value), distribution.log_prob(value), rtol=0, atol=0)
    for name in ("mean", "variance", "covariance_matrix", "concentration"):
        torch.testing.assert_close(
            getattr(expanded, name), getattr(distribution, name).expand_as(getattr(expanded, name)), rtol=0, atol=0
        )
    assert expanded.sample().shape == (2, 3, dim)
    assert expanded.expand((4, 2, 3)).entropy().shape == (4, 2, 3)
    with pytest.raises(RuntimeError):
        expanded.expand((2, 4))


@every_law
@every_dim
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_validation_of_arguments(law, dim, dtype):
    loc = directions(dim, seed=6, dtype=dtype)
    for concentration in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match="concentration"):
            law(loc, torch.tensor(concentration, dtype=dtype), validate_args=True)
        law(loc, torch.tensor(concentration, dtype=dtype), validate_args=False)
    tolerance = 10 * torch.finfo(dtype).eps * dim**0.5
    law(loc * (1 + tolerance / 2), torch.tensor(1.0, dtype=dtype), validate_args=True)
    for factor in (1 + 2 * tolerance, 1 - 2 * tolerance, 0.0, math.nan):
        with pytest.raises(ValueError, match="loc"):
            law(loc * factor, torch.tensor(1.0, dtype=dtype), validate_args=True)
    for shape in ((), (1,), (3, 1)):
        with pytest.raises(ValueError, match=r"loc must have shape \(\*batch, dim\)"):
            law(torch.ones(shape), torch.tensor(1.0))


@pytest.mark.parametrize(
    "make",
    [lambda dim: HypersphericalUniform(dim, dtype=torch.float64)]
    + [lambda dim, law=law: law(directions(dim, seed=7), 2.0) for law in LAWS],
)
@every_dim
def test_validation_of_values(make, dim):
    distribution = make(dim)
    assert distribution.support.event_dim == 1
    value = directions(dim, seed=8)
    distribution.log_prob(value)
    for unsuitable in (1.1 * value, 0 * value, value * math.nan):
        with pytest.raises(ValueError, match="UnitSphere"):
            distribution.log_prob(unsuitable)
    with pytest.raises(ValueError, match="event_shape"):
        distribution.log_prob(directions(dim + 1, seed=9))
    with pytest.raises(ValueError, match="must be a Tensor"):
        distribution.log_prob(value.tolist())


@every_law
def test_representation_and_copies(law):
    distribution = law(torch.tensor([0.0, 1.0]), torch.tensor(2.0))
    assert repr(distribution) == f"{law.__name__}(loc: torch.Size([2]), concentration: 2.0)"
    assert repr(HypersphericalUniform(3)) == "HypersphericalUniform(dim=3)"
    for twin in (copy.deepcopy(distribution), pickle.loads(pickle.dumps(distribution))):
        torch.testing.assert_close(twin.log_prob(distribution.loc), distribution.log_prob(distribution.loc))


@every_law
@every_dim
def test_independent(law, dim):
    distribution = law(directions(4, 3, dim, seed=10), 5 + torch.rand(4, 3, **double))
    independent = Independent(distribution, 1)
    assert (independent.batch_shape, independent.event_shape) == ((4,), (3, dim))
    assert independent.has_rsample == distribution.has_rsample
    value = independent.sample((2,))
    torch.testing.assert_close(independent.log_prob(value), distribution.log_prob(value).sum(-1))
    torch.testing.assert_close(independent.entropy(), distribution.entropy().sum(-1))
    other = Independent(law(directions(3, dim, seed=11), 2.0), 1).expand((4,))
    torch.testing.assert_close(kl_divergence(independent, other), kl_divergence(distribution, other.base_dist).sum(-1))


@every_law
@every_dim
def test_mixture_of_the_same_family(law, dim):
    components = law(directions(5, dim, seed=12), torch.tensor([0.0, 1.0, 5.0, 20.0, 1e3], **double))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1], **double)
    mixture = MixtureSameFamily(Categorical(weights), components)
    assert (mixture.batch_shape, mixture.event_shape) == ((), (dim,))
    value = mixture.sample((7,))
    uniform = components.log_prob(value[:, None])[
        :, :1
    ]  # the first component; the density itself overflows at d = 512
    brute = ((components.log_prob(value[:, None]) - uniform).exp() * weights).sum(-1).log() + uniform[:, 0]
    torch.testing.assert_close(mixture.log_prob(value), brute, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mixture.mean, (weights[:, None] * components.mean).sum(0))
    second = (weights[:, None] * (components.variance + components.mean**2)).sum(0)
    torch.testing.assert_close(mixture.variance, second - mixture.mean**2)
    assert mixture.expand((2,)).log_prob(directions(2, dim, seed=13)).shape == (2,)


class Rotation(Transform):
    domain = codomain = unit_sphere
    bijective = True

    def __init__(self, matrix: torch.Tensor):
        super().__init__()
        self.matrix = matrix

    def _call(self, x):
        return x @ self.matrix.mT

    def _inverse(self, y):
        return y @ self.matrix

    def log_abs_det_jacobian(self, x, y):
        return x.new_zeros(x.shape[:-1])


@every_law
@every_dim
def test_transformed_distribution(law, dim):
    matrix = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(14), **double)).Q
    loc = directions(3, dim, seed=15)
    transformed = TransformedDistribution(law(loc, 4.0), Rotation(matrix))
    assert (transformed.batch_shape, transformed.event_shape) == ((3,), (dim,))
    assert transformed.has_rsample == law(loc, 4.0).has_rsample
    rotated = law(F.normalize(loc @ matrix.mT, dim=-1), 4.0)
    value = transformed.sample((6,))
    torch.testing.assert_close(transformed.log_prob(value), rotated.log_prob(value), rtol=1e-11, atol=1e-11)
    assert transformed.expand((2, 3)).sample().shape == (2, 3, dim)


@every_law
@every_dim
def test_natural_parameter(law, dim):
    eta = 30 * torch.randn(4, dim, generator=torch.Generator().manual_seed(16), **double)
    eta[0] = 0
    distribution = law.from_natural_parameter(eta.requires_grad_())
    torch.testing.assert_close(distribution.natural_parameter, eta, rtol=1e-14, atol=0)
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    value = directions(4, dim, seed=17)
    torch.testing.assert_close(distribution.log_prob(value)[0], uniform.log_prob(value[0]), rtol=1e-15, atol=0)
    distribution.log_prob(value).sum().backward()
    assert torch.all(eta.grad.isfinite())
    if law is VonMisesFisher:  # the score of an exponential family: observation minus mean
        torch.testing.assert_close(eta.grad[1:], (value - distribution.mean)[1:].detach(), rtol=1e-9, atol=1e-11)


@every_dim
def test_the_uniform_law(dim):
    uniform = HypersphericalUniform(dim, dtype=torch.float64).expand((2, 1))
    assert (uniform.batch_shape, uniform.event_shape, uniform.has_rsample) == ((2, 1), (dim,), True)
    assert uniform.sample((3,)).shape == (3, 2, 1, dim)
    assert uniform.log_prob(directions(3, 1, 5, dim, seed=18)).shape == (3, 2, 5)
    torch.testing.assert_close(uniform.entropy(), -uniform.log_prob(directions(dim, seed=19)), rtol=0, atol=0)
    assert uniform.mode.isnan().all() and uniform.mode.shape == (2, 1, dim)
    for law in LAWS:
        same = law(directions(dim, seed=20), 0.0)
        for name in ("mean", "variance", "covariance_matrix", "mean_resultant_length"):
            expected = getattr(uniform, name)
            torch.testing.assert_close(getattr(same, name).expand_as(expected), expected, rtol=1e-14, atol=1e-16)
        torch.testing.assert_close(same.entropy().expand(2, 1), uniform.entropy(), rtol=1e-15, atol=0)
    for unsuitable, error in ((1, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="dim must be"):
            HypersphericalUniform(unsuitable)


@pytest.mark.parametrize("dim", [2, 3, 8, 64])
def test_density_of_scipy(dim):
    loc, value = directions(dim, seed=21), directions(50, dim, seed=22)
    for concentration in (0.3, 4.0, 90.0, 500.0):
        ours = VonMisesFisher(loc, concentration)
        theirs = scipy.stats.vonmises_fisher(loc.numpy(), concentration)
        expected = torch.from_numpy(theirs.logpdf(value.numpy()))
        torch.testing.assert_close(ours.log_prob(value), expected, rtol=1e-11, atol=1e-11)
        assert ours.entropy().item() == pytest.approx(theirs.entropy(), rel=1e-9, abs=1e-9)


@every_law
@every_dim
def test_safe_at_the_poles_and_at_both_ends_of_the_concentration(law, dim):
    axis = torch.zeros(dim)
    axis[0] = 1.0
    for loc in (axis, -axis):
        distribution = law(loc, torch.tensor([0.0, 1e-30, 1.0, 1e5]).requires_grad_())
        assert torch.all(distribution.log_prob(loc).isfinite()) and torch.all(distribution.entropy().isfinite())
        opposite = distribution.log_prob(-loc)
        assert not opposite.isnan().any() and opposite[0].item() == pytest.approx(distribution.log_prob(loc)[0].item())
        (slope,) = torch.autograd.grad(distribution.log_prob(loc).sum(), distribution.concentration)
        assert torch.all(slope.isfinite()) and torch.all(slope >= 0)
    if law is PowerSpherical:
        assert opposite[2:].eq(-math.inf).all()


@every_law
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(law, dtype):
    loc, value = (
        directions(3, 64, seed=23, dtype=torch.float32).to(dtype),
        directions(64, seed=24, dtype=torch.float32),
    )
    distribution = law(loc, torch.tensor([1.0, 2.0, 4.0], dtype=dtype))
    assert {distribution.log_prob(value).dtype, distribution.entropy().dtype, distribution.sample().dtype} == {
        torch.float32
    }
    same = law(F.normalize(loc.float(), dim=-1), torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(distribution.log_prob(value), same.log_prob(value), rtol=0, atol=0)
    torch.testing.assert_close(
        law.from_natural_parameter(loc).concentration, loc.float().norm(dim=-1), rtol=1e-6, atol=0
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(same.log_prob(value), distribution.log_prob(value), rtol=0, atol=0)


@every_law
@every_dim
def test_gradcheck_and_gradgradcheck(law, dim):
    concentration = torch.tensor([0.0, 0.4, 1.0, 30.0], **double, requires_grad=True)
    value = directions(4, dim, seed=25)
    raw = torch.randn(4, dim, generator=torch.Generator().manual_seed(26), **double).requires_grad_()

    def of_concentration(concentration):
        distribution = law(directions(4, dim, seed=27), concentration, validate_args=False)
        return distribution.log_prob(value), distribution.entropy()

    def of_both(raw, concentration):
        return law(F.normalize(raw, dim=-1), concentration, validate_args=False).log_prob(value)

    assert torch.autograd.gradcheck(of_concentration, concentration)
    assert torch.autograd.gradgradcheck(of_concentration, concentration)
    fast = dim > 100
    assert torch.autograd.gradcheck(of_both, (raw, concentration), fast_mode=fast)
    assert torch.autograd.gradgradcheck(of_both, (raw, concentration), fast_mode=fast)


@every_law
@every_dim
def test_function_transforms(law, dim):
    concentration = torch.tensor([0.0, 0.4, 1.0, 30.0], **double)
    loc, value = directions(4, dim, seed=28), directions(4, dim, seed=29)

    def log_prob(concentration, loc, value):
        return law(loc, concentration, validate_args=False).log_prob(value)

    def entropy(concentration, loc):
        return law(loc, concentration, validate_args=False).entropy()

    expected = law(loc, concentration).log_prob(value)
    torch.testing.assert_close(torch.func.vmap(log_prob)(concentration, loc, value), expected)
    leaf = concentration.clone().requires_grad_()
    (slope,) = torch.autograd.grad(law(loc, leaf).log_prob(value).sum(), leaf)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(log_prob))(concentration, loc, value), slope)
    (slope,) = torch.autograd.grad(law(loc, leaf).entropy().sum(), leaf, create_graph=True)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(entropy))(concentration, loc), slope.detach())
    (curvature,) = torch.autograd.grad(slope.sum(), leaf)
    second = torch.func.vmap(torch.func.jacrev(torch.func.grad(entropy)))(concentration, loc)
    torch.testing.assert_close(second, curvature)
    of_eta = torch.func.grad(lambda eta, value: law.from_natural_parameter(eta, validate_args=False).log_prob(value))
    assert torch.all(torch.func.vmap(of_eta)(concentration[:, None] * loc, value).isfinite())


# Dynamo instantiates torch.autograd.Function itself and hides the warning this causes, but not from an error filter.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@every_law
@pytest.mark.parametrize("dim", [40, 512])
def test_compiles_to_one_graph(law, dim):
    torch.compiler.reset()

    def both(loc, concentration, value):
        distribution = law(loc, concentration)
        return distribution.log_prob(value), distribution.entropy()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    loc, value = (directions(4, dim, seed=seed, dtype=torch.float32) for seed in (30, 31))
    gradients = []
    for function in (compiled, both):
        concentration = torch.tensor([0.0, 0.4, 1.0, 30.0], requires_grad=True)
        results = function(loc, concentration, value)
        gradients.append((*results, *torch.autograd.grad(sum(each.sum() for each in results), concentration)))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


@every_law
@every_dim
def test_shapes_and_devices_without_storage(law, dim):
    """On the meta device, a tensor made on another device, or a value asked for, would raise."""
    distribution = law(torch.ones(4, dim, device="meta"), torch.ones(4, device="meta"), validate_args=False)
    value = torch.ones(4, dim, device="meta")
    for result in (distribution.log_prob(value), distribution.entropy(), distribution.covariance_matrix):
        assert result.is_meta and result.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_law
@every_dim
def test_cuda_gives_the_numbers_of_the_cpu(law, dim):
    concentration = torch.tensor([0.0, 1.0, 50.0, 1e5])
    on_cpu = law(directions(4, dim, seed=32, dtype=torch.float32), concentration)
    on_cuda = law(on_cpu.loc.cuda(), concentration.cuda())
    sample = on_cuda.sample((1000,), generator=torch.Generator("cuda").manual_seed(33))
    assert sample.is_cuda and torch.all(unit_sphere.check(sample))
    torch.testing.assert_close(on_cuda.log_prob(sample).cpu(), on_cpu.log_prob(sample.cpu()), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(on_cuda.entropy().cpu(), on_cpu.entropy(), rtol=1e-5, atol=1e-4)
    fitted = law.fit(sample[:, 1:])
    assert fitted.loc.is_cuda and torch.all(fitted.concentration > 0)
