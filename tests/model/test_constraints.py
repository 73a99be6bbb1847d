"""Constraints of the distributions as optimisers use them; gradients at eta = 0, values at large concentrations."""

import pytest
import torch
from torch.distributions import biject_to, transform_to

from modeling_asymvlm import PowerSpherical, VonMisesFisher
from modeling_asymvlm.model.log_normalizers import power_spherical_log_normalizer
from tests.support.exact_normalizers import exact_power_spherical


LAWS = pytest.mark.parametrize("law", [VonMisesFisher, PowerSpherical], ids=lambda law: law.__name__)


@LAWS
@pytest.mark.parametrize("dim", [2, 3, 64])
def test_free_parameters_become_those_of_a_distribution(law, dim):
    free = {"loc": torch.randn(20, dim, generator=torch.Generator().manual_seed(0)), "concentration": torch.randn(20)}
    free["loc"][0] = 0
    arguments = {name: transform_to(law.arg_constraints[name])(value) for name, value in free.items()}
    assert all(bool(law.arg_constraints[name].check(value).all()) for name, value in arguments.items())
    law(**arguments, validate_args=True)
    onto = transform_to(law.support)
    torch.testing.assert_close(onto(onto.inv(arguments["loc"])), arguments["loc"])
    assert onto == transform_to(law.arg_constraints["loc"]) and not onto.bijective


@LAWS
def test_a_distribution_is_fitted_by_gradient_steps_on_free_parameters(law):
    torch.manual_seed(0)
    truth = law(torch.tensor([0.6, 0.0, 0.8]), 20.0)
    samples = truth.sample((2000,))
    free = [torch.randn(3, requires_grad=True), torch.zeros((), requires_grad=True)]
    optimizer = torch.optim.Adam(free, lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        fitted = law(transform_to(law.support)(free[0]), transform_to(law.arg_constraints["concentration"])(free[1]))
        (-fitted.log_prob(samples).mean()).backward()
        optimizer.step()
    assert torch.dot(fitted.loc, truth.loc) > 0.999
    assert fitted.concentration.item() == pytest.approx(law.fit(samples).concentration.item(), rel=0.01)


@LAWS
def test_the_sphere_has_no_bijection_and_concentrations_have_one(law):
    with pytest.raises(NotImplementedError):
        biject_to(law.support)
    bijection = biject_to(law.arg_constraints["concentration"])
    values = torch.tensor([-3.0, 0.0, 5.0])
    torch.testing.assert_close(bijection.inv(bijection(values)), values)


@LAWS
@pytest.mark.parametrize("dim", [2, 3, 16])
def test_gradients_of_both_orders_at_no_concentration_are_zero(law, dim):
    eta = torch.zeros(2, dim, dtype=torch.float64, requires_grad=True)
    points = torch.nn.functional.normalize(torch.randn(2, dim, dtype=torch.float64), dim=-1)
    value = law.from_natural_parameter(eta).log_prob(points).sum()
    (first,) = torch.autograd.grad(value, eta, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum() + first.sum(), eta)
    assert torch.equal(first, torch.zeros_like(first)) and torch.equal(second, torch.zeros_like(second))


@pytest.mark.parametrize("dim", [2, 3, 8, 64, 512])
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 36), (torch.float64, 305)])
def test_the_normaliser_of_power_spherical_is_exact_up_to_the_stated_concentration(dim, dtype, largest):
    exponents = [5, 7.5, 8.2, 9, 12, 16.9, 17.5, 20, 30, largest]
    kappa = torch.tensor([10.0**exponent for exponent in exponents], dtype=dtype)
    found = power_spherical_log_normalizer(kappa, dim)
    expected = torch.tensor([float(exact_power_spherical(each.item(), dim)[0]) for each in kappa], dtype=torch.float64)
    error = (found.double() / expected - 1).abs()
    assert (error <= torch.finfo(dtype).eps * (8 + kappa.double().log())).all()  # kappa ln kappa is rounded in it
