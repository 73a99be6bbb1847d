"""Normalisers against 50-digit arithmetic that shares none of their formulas: 0F1 series and gamma functions."""

import math

import mpmath
import pytest
import scipy.stats
import torch

from modeling_asymvlm.model.log_normalizers import (
    power_spherical_log_normalizer,
    power_spherical_mean_log1p_cosine,
    uniform_log_density,
    vmf_log_normalizer,
    vmf_log_normalizer_paper,
    vmf_mean_resultant_length,
)
from tests.support.exact_normalizers import EXACT, LISTED_DIMS, exact_paper


# Both sides of every dimension at which the recurrences or a term of the series switch on, and others at random.
OTHER_DIMS = (4, 5, 11, 19, 20, 21, 22, 25, 26, 27, 33, 34, 35, 40, 51, 52, 53, 99, 300, 2047, 8192)
LISTED_CONCENTRATIONS = (0.0, *(10 ** (-4 + i / 2) for i in range(19)), 0.4, 0.5, 0.999, 1.001)
FUNCTIONS = {
    "vmf": (vmf_log_normalizer, vmf_mean_resultant_length),
    "power_spherical": (power_spherical_log_normalizer, power_spherical_mean_log1p_cosine),
}
EVERY_FUNCTION = (*FUNCTIONS["vmf"], *FUNCTIONS["power_spherical"], vmf_log_normalizer_paper)
# Error allowed in the value, first and second derivative, relative to no less than the floor of that order: the value
# and slope of Power Spherical cross zero.
BOUNDS = {
    ("vmf", torch.float64): (1e-12, 1e-12, 1e-9),
    ("vmf", torch.float32): (1e-6, 1e-6, 1e-4),
    ("power_spherical", torch.float64): (1e-12, 1e-12, 1e-9),
    ("power_spherical", torch.float32): (3e-6, 3e-6, 1e-4),
}
FLOORS = {"vmf": (0.0, 0.0, 0.0), "power_spherical": (1e-3, 1e-2, 0.0)}


def derivatives(function, concentration: torch.Tensor, dim: int, highest: int) -> list[torch.Tensor]:
    concentration = concentration.detach().requires_grad_()
    orders = [function(concentration, dim)]
    for _ in range(highest):
        (next_order,) = torch.autograd.grad(orders[-1].sum(), concentration, create_graph=True)
        orders.append(next_order)
    return [order.detach() for order in orders]


def worst_error(computed: torch.Tensor, exact: list, floor: float) -> float:
    worst = 0.0
    for number, reference in zip(computed.tolist(), exact, strict=True):
        assert math.isfinite(number)
        scale = max(abs(reference), floor)
        if scale == 0:
            assert number == 0
        else:
            worst = max(worst, float(abs(number - reference) / scale))
    return worst


def assert_exact(law: str, dim: int, concentration: torch.Tensor) -> None:
    exact = [EXACT[law](kappa, dim) for kappa in concentration.tolist()]
    for dtype in (torch.float64, torch.float32):
        computed = derivatives(FUNCTIONS[law][0], concentration.to(dtype), dim, highest=2)
        assert all(order.dtype == dtype for order in computed)
        for order, bound in enumerate(BOUNDS[law, dtype]):
            error = worst_error(computed[order], [each[order] for each in exact], FLOORS[law][order])
            assert error <= bound, (dtype, order, error)


@pytest.mark.parametrize("dim", LISTED_DIMS)
@pytest.mark.parametrize("law", FUNCTIONS)
def test_value_and_derivatives_on_the_listed_grid(law, dim):
    assert_exact(law, dim, torch.tensor(LISTED_CONCENTRATIONS))


@pytest.mark.parametrize("dim", OTHER_DIMS)
@pytest.mark.parametrize("law", FUNCTIONS)
def test_value_and_derivatives_at_random_concentrations(law, dim):
    generator = torch.Generator().manual_seed(dim)
    # The 0F1 series is slow where kappa exceeds some thousands together with d.
    decades = 9 if dim < 2000 else 7
    spread = 10 ** (torch.rand(20, generator=generator) * decades - 4)
    assert_exact(law, dim, torch.cat([spread, torch.rand(20, generator=generator) * 2]))


@pytest.mark.parametrize("law", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dimension_too_large_for_more_than_one_term(law, dtype):
    concentration = torch.tensor([0.0, 0.5, 30.0, 3000.0], dtype=dtype)
    computed = derivatives(FUNCTIONS[law][0], concentration, 200_001, highest=2)
    for order, bound in enumerate(BOUNDS[law, dtype]):
        exact = [EXACT[law](kappa, 200_001)[order] for kappa in concentration.tolist()]
        assert worst_error(computed[order], exact, FLOORS[law][order]) <= bound


@pytest.mark.parametrize("dim", LISTED_DIMS)
@pytest.mark.parametrize("law", FUNCTIONS)
def test_first_derivative_is_minus_the_named_mean(law, dim):
    log_normalizer, mean = FUNCTIONS[law]
    concentration = torch.tensor(LISTED_CONCENTRATIONS)
    _, slope = derivatives(log_normalizer, concentration, dim, highest=1)
    torch.testing.assert_close(-slope, mean(concentration, dim), rtol=0, atol=0)


@pytest.mark.parametrize("dim", LISTED_DIMS)
def test_zero_concentration(dim):
    zero = torch.zeros(1, dtype=torch.float64)
    value, slope, curvature = (order.item() for order in derivatives(vmf_log_normalizer, zero, dim, highest=2))
    assert (value, slope) == (0, 0)
    assert curvature == pytest.approx(-1 / dim, rel=1e-13)
    one = torch.ones(1, dtype=torch.float64)
    assert power_spherical_log_normalizer(zero, dim).item() == 0
    assert power_spherical_log_normalizer(one, dim).item() == pytest.approx(0, abs=1e-16)


@pytest.mark.parametrize("dim", LISTED_DIMS)
def test_paper_normalizer_is_the_printed_formula(dim):
    exact = [exact_paper(kappa, dim) for kappa in torch.tensor(LISTED_CONCENTRATIONS).tolist()]
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        computed = derivatives(vmf_log_normalizer_paper, torch.tensor(LISTED_CONCENTRATIONS).to(dtype), dim, highest=1)
        for order in range(2):
            assert worst_error(computed[order], [each[order] for each in exact], 0.0) <= bound


@pytest.mark.parametrize("dim", LISTED_DIMS)
def test_mean_resultant_length_is_monotone_and_between_the_bounds(dim):
    concentration = torch.logspace(-4, 5, 2000, dtype=torch.float64)
    length = vmf_mean_resultant_length(concentration, dim)
    half = (dim - 1) / 2
    assert torch.all(length.diff() > 0) and torch.all((length > 0) & (length < 1))
    assert torch.all(
        length * (1 + 1e-14) >= concentration / (half + torch.hypot(concentration, length.new_tensor(half + 1)))
    )
    assert torch.all(
        length * (1 - 1e-14) <= concentration / (half + torch.hypot(concentration, length.new_tensor(half)))
    )


@pytest.mark.parametrize("dim", [64, 65, 512, 1152])
def test_recurrences_in_the_dimension_where_the_code_uses_none(dim):
    concentration = torch.logspace(-4, 5, 200, dtype=torch.float64)
    length, above = (vmf_mean_resultant_length(concentration, d) for d in (dim, dim + 2))
    torch.testing.assert_close(length * (dim / concentration + above), torch.ones_like(length), rtol=1e-13, atol=0)
    value, above = (power_spherical_log_normalizer(concentration, d) for d in (dim, dim + 2))
    ratio = dim * (dim - 1 + 2 * concentration) / ((dim - 1 + concentration) * (dim + concentration))
    torch.testing.assert_close(value, above + ratio.log(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dim", [2, 3, 8, 64])
def test_von_mises_fisher_density_of_scipy(dim):
    direction = torch.nn.functional.normalize(torch.arange(1.0, dim + 1, dtype=torch.float64), dim=0)
    for kappa in (0.5, 3.0, 40.0, 500.0):
        expected = scipy.stats.vonmises_fisher(direction.numpy(), kappa).logpdf(direction.numpy())
        assert math.isfinite(expected)
        log_normalizer = vmf_log_normalizer(torch.tensor(kappa, dtype=torch.float64), dim).item()
        assert uniform_log_density(dim) + log_normalizer + kappa == pytest.approx(
            float(expected), rel=1e-11, abs=1e-11
        )


def test_uniform_density_is_one_over_the_area_of_the_sphere():
    areas = {2: 2 * math.pi, 3: 4 * math.pi, 4: 2 * math.pi**2}
    for dim, area in areas.items():
        assert uniform_log_density(dim) == pytest.approx(-math.log(area), rel=1e-14)
    with mpmath.workdps(50):
        exact = mpmath.loggamma(mpmath.mpf(512)) - mpmath.log(2) - 512 * mpmath.log(mpmath.pi)
    assert uniform_log_density(1024) == pytest.approx(float(exact), rel=1e-14)


@pytest.mark.parametrize("function", EVERY_FUNCTION)
@pytest.mark.parametrize("dim", [2, 3, 8, 512])
def test_gradcheck_and_gradgradcheck(function, dim):
    concentration = torch.tensor([0.0, 0.3, 1.0, 2.5, 40.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda kappa: function(kappa, dim), concentration)
    assert torch.autograd.gradgradcheck(lambda kappa: function(kappa, dim), concentration)


@pytest.mark.parametrize("function", EVERY_FUNCTION)
def test_vmap_of_first_and_second_derivatives(function):
    concentration = torch.linspace(0, 20, 12, dtype=torch.float64)
    _, slope, curvature = derivatives(function, concentration, 8, highest=2)
    first = torch.func.grad(lambda kappa: function(kappa, 8))
    torch.testing.assert_close(torch.func.vmap(first)(concentration), slope, rtol=1e-14, atol=0)
    nested = torch.func.vmap(torch.func.vmap(torch.func.grad(first)))(concentration.reshape(3, 4))
    torch.testing.assert_close(nested.flatten(), curvature, rtol=1e-13, atol=1e-15)


# Dynamo instantiates torch.autograd.Function itself and hides the warning this causes, but not from an error filter.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("function", EVERY_FUNCTION)
def test_compiles_to_one_graph_for_any_dimension(function):
    torch.compiler.reset()
    compiled = torch.compile(lambda kappa, dim: function(kappa, dim), fullgraph=True, backend="aot_eager")
    concentration = torch.tensor([0.0, 0.7, 30.0])
    for dim in (512, 24):  # at the second, Dynamo takes dim for a number of unknown value
        expected = derivatives(function, concentration, dim, highest=1)
        torch.testing.assert_close(
            derivatives(compiled, concentration, dim, highest=1), expected, rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("function", EVERY_FUNCTION)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(function, dtype):
    concentration = torch.tensor([0.0, 0.3, 5.0, 300.0], dtype=dtype)
    value = function(concentration, 512)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, function(concentration.float(), 512), rtol=0, atol=0)
    assert derivatives(function, concentration, 512, highest=1)[1].dtype == dtype


@pytest.mark.parametrize("function", EVERY_FUNCTION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_changes_nothing(function, dtype):
    concentration = torch.tensor([0.0, 0.3, 5.0, 300.0], dtype=dtype)
    expected = derivatives(function, concentration, 512, highest=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(derivatives(function, concentration, 512, highest=2), expected, rtol=0, atol=0)


@pytest.mark.parametrize("function", EVERY_FUNCTION)
def test_shape_device_and_nan(function):
    for shape in ((), (0,), (2, 3)):
        assert function(torch.ones(shape), 8).shape == shape
    # A tensor made on another device than the input's would raise on the meta device.
    assert all(order.is_meta for order in derivatives(function, torch.ones(3, device="meta"), 8, highest=2))
    orders = derivatives(function, torch.tensor([1.0, math.nan]), 8, highest=1)
    assert all(order.isnan().tolist() == [False, True] for order in orders)


@pytest.mark.parametrize("function", EVERY_FUNCTION)
def test_unsuitable_arguments_are_refused(function):
    concentration = torch.ones(2)
    for unsuitable in (torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.complex64), 1.0, [1.0]):
        with pytest.raises(TypeError, match="concentration must be a tensor of a floating-point dtype, got"):
            function(unsuitable, 8)
    for dim in (8.0, "8", None, True):
        with pytest.raises(TypeError, match=f"dim must be an int.*got {dim!r}"):
            function(concentration, dim)
    for dim in (1, 0, -3):
        with pytest.raises(ValueError, match=f"dim must be at least 2.*got {dim}"):
            function(concentration, dim)
