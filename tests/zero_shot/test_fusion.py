"""Fused prompts against quadrature over the sphere, loops over single laws, and what a fusion must keep."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_asymvlm.model.distributions import PowerSpherical, VonMisesFisher, product
from modeling_asymvlm.model.log_normalizers import uniform_log_density
from modeling_asymvlm.model.objective import Likelihood
from modeling_asymvlm.zero_shot import fusion as prompt_fusion
from modeling_asymvlm.zero_shot.fusion import FUSIONS, fuse_prompts, mean_log_likelihood, prompt_weights


LAWS = {"vmf": VonMisesFisher, "power_spherical": PowerSpherical}
SIZES = (1, 4, 2, 7)


def prompts_of_classes(seed, dim=3, sizes=SIZES, dtype=torch.float64):
    """Natural parameters of unequal length, more or less about a direction of each class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centres = torch.randn(len(sizes), dim, generator=generator, dtype=dtype)
    directions = F.normalize(centres[owner] + 0.7 * torch.randn(len(owner), dim, generator=generator, dtype=dtype))
    concentration = 0.5 + 9 * torch.rand(len(owner), 1, generator=generator, dtype=dtype)
    return concentration * directions, owner


def sphere(num_heights=60, num_angles=120):
    """Points of the sphere in three dimensions and the weights of an exact product quadrature."""
    heights, height_weights = np.polynomial.legendre.leggauss(num_heights)
    angles = 2 * np.pi * np.arange(num_angles) / num_angles
    radii = np.sqrt(1 - heights**2)[:, None]
    points = np.stack(
        [radii * np.cos(angles), radii * np.sin(angles), np.broadcast_to(heights[:, None], (num_heights, num_angles))],
        axis=-1,
    )
    weights = np.repeat(height_weights * 2 * np.pi / num_angles, num_angles)
    return torch.from_numpy(points.reshape(-1, 3)), torch.from_numpy(weights)


def log_product(law, eta, points, correlation):
    """The unnormalised log-density of the tempered product, from the densities of the prompts one by one."""
    concentration = eta.norm(dim=1)
    effective_number = float(concentration.sum() ** 2 / concentration.square().sum())
    logs = sum(law.from_natural_parameter(row).log_prob(points) for row in eta)
    return logs / (1 + (effective_number - 1) * correlation)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_the_product_of_von_mises_fisher_prompts_is_the_normalised_density(correlation):
    points, weights = sphere()
    eta, owner = prompts_of_classes(0)
    fused = fuse_prompts(eta, owner, len(SIZES), prompt_correlation=correlation)
    for number in range(len(SIZES)):
        logs = log_product(VonMisesFisher, eta[owner == number], points, correlation)
        normalized = logs - torch.log((weights * logs.exp()).sum())
        found = VonMisesFisher.from_natural_parameter(fused[number]).log_prob(points)
        torch.testing.assert_close(found, normalized, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_the_projection_of_power_spherical_prompts_keeps_the_harmonics_of_degree_one(correlation):
    points, weights = sphere(200, 200)
    eta, owner = prompts_of_classes(1)
    fused = fuse_prompts(eta, owner, len(SIZES), prompt_correlation=correlation)
    for number in range(len(SIZES)):
        logs = log_product(PowerSpherical, eta[owner == number], points, correlation)
        law = PowerSpherical.from_natural_parameter(fused[number])
        harmonics = [(weights[:, None] * each[:, None] * points).sum(0) for each in (logs, law.log_prob(points))]
        torch.testing.assert_close(*harmonics, atol=2e-3, rtol=2e-3)  # the logarithm's pole limits the quadrature


@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_the_projection_of_power_spherical_prompts_is_close_in_many_dimensions(correlation):
    generator = torch.Generator().manual_seed(0)
    eta, owner = prompts_of_classes(11, dim=64)
    eta = 3 * eta  # concentrations from 1.5 to 29
    fused = fuse_prompts(eta, owner, len(SIZES), prompt_correlation=correlation)
    for number in range(len(SIZES)):
        law = PowerSpherical.from_natural_parameter(fused[number])
        samples = law.sample((20_000,), generator=generator)
        excess = log_product(PowerSpherical, eta[owner == number], samples, correlation) - law.log_prob(samples)
        log_weights = excess - excess.logsumexp(0) + math.log(len(samples))
        weights = log_weights.exp()
        assert weights.square().mean() < 3  # so that the samples of the one stand for the other
        divergence = (weights * log_weights).mean()
        from_uniform = divergence + (weights * law.log_prob(samples)).mean() - uniform_log_density(64)
        assert -1e-9 < divergence < 0.02 * from_uniform
        if SIZES[number] == 1:
            assert abs(divergence) < 1e-9


@pytest.mark.parametrize("law", LAWS)
def test_independent_prompts_give_the_product_of_the_distributions(law):
    eta, owner = prompts_of_classes(2, dim=8)
    fused = fuse_prompts(eta, owner, len(SIZES), prompt_correlation=0.0)
    for number in range(len(SIZES)):
        own = [LAWS[law].from_natural_parameter(row) for row in eta[owner == number]]
        torch.testing.assert_close(fused[number], product(*own).natural_parameter)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_a_vague_prompt_loses_its_weight_by_itself(correlation):
    precise, owner = prompts_of_classes(3, dim=16, sizes=(3,))
    elsewhere = F.normalize(torch.randn(1, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    alone = fuse_prompts(precise, owner, 1, prompt_correlation=correlation)
    moved, shares = [], []
    for concentration in (10.0, 1.0, 0.1, 1e-3, 0.0):
        prompts = torch.cat([precise, concentration * elsewhere])
        classes = torch.zeros(4, dtype=torch.long)
        fused = fuse_prompts(prompts, classes, 1, prompt_correlation=correlation)
        moved.append(float((fused - alone).norm() / alone.norm()))
        shares.append(float(prompt_weights(prompts, classes, 1, fusion="product")[-1]))
    assert moved == sorted(moved, reverse=True) and shares == sorted(shares, reverse=True)
    assert moved[0] > 0.05 and moved[-2] < 1e-3 and moved[-1] < 1e-15 and shares[-1] == 0
    counted = fuse_prompts(
        torch.cat([precise, 1e-3 * elsewhere]), torch.zeros(4, dtype=torch.long), 1, fusion="mean_direction"
    )
    assert F.cosine_similarity(counted, alone)[0] < 0.99  # what plain averaging does with it


def test_prompts_that_say_the_same_count_once_or_each_as_the_correlation_says():
    eta, _ = prompts_of_classes(4, dim=8, sizes=(3,))
    once = fuse_prompts(eta, torch.zeros(3, dtype=torch.long), 1)
    twice, classes = torch.cat([eta, eta]), torch.zeros(6, dtype=torch.long)
    torch.testing.assert_close(fuse_prompts(twice, classes, 1), once)
    independent = fuse_prompts(twice, classes, 1, prompt_correlation=0.0)
    torch.testing.assert_close(independent[0], 2 * eta.sum(0))
    direction = F.normalize(eta[:1], dim=-1)
    concentration = torch.tensor([[2.0], [5.0], [11.0]], dtype=torch.float64)
    agreeing = fuse_prompts(concentration * direction, torch.zeros(3, dtype=torch.long), 1).norm()
    assert 2 < agreeing < 11
    alike = fuse_prompts(torch.full_like(concentration, 5.0) * direction, torch.zeros(3, dtype=torch.long), 1)
    torch.testing.assert_close(alike, 5 * direction)


@pytest.mark.parametrize("fusion", ["product", "mean_direction"])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_one_prompt_is_its_class(fusion, correlation):
    eta, owner = prompts_of_classes(5, dim=8, sizes=(1, 1, 1))
    torch.testing.assert_close(fuse_prompts(eta, owner, 3, fusion=fusion, prompt_correlation=correlation), eta)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_order_of_prompts_and_the_other_classes_do_not_matter(fusion):
    eta, owner = prompts_of_classes(6, dim=8)
    images = torch.randn(5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def fused(eta, owner, num_classes):
        if fusion == "mean_log_likelihood":
            return mean_log_likelihood(eta, owner, num_classes, images, Likelihood("power_spherical"))
        return fuse_prompts(eta, owner, num_classes, fusion=fusion, prompt_correlation=0.4)

    together = fused(eta, owner, len(SIZES))
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(fused(eta[order], owner[order], len(SIZES)), together)
    for number in range(len(SIZES)):
        own = eta[owner == number]
        torch.testing.assert_close(fused(own, torch.zeros(len(own), dtype=torch.long), 1)[0], together[number])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_weights_are_shares_of_each_class(fusion):
    eta, owner = prompts_of_classes(7)
    weights = prompt_weights(eta, owner, len(SIZES), fusion=fusion)
    for number, size in enumerate(SIZES):
        own = eta[owner == number].norm(dim=1)
        expected = own / own.sum() if fusion == "product" else torch.full_like(own, 1 / size)
        torch.testing.assert_close(weights[owner == number], expected)


def test_a_class_of_uniform_prompts_is_uniform():
    eta, owner = torch.zeros(3, 4), torch.tensor([0, 0, 1])
    assert prompt_weights(eta, owner, 2, fusion="product").tolist() == [0.5, 0.5, 1.0]
    for correlation in (0.0, 1.0):
        assert torch.equal(fuse_prompts(eta, owner, 2, prompt_correlation=correlation), torch.zeros(2, 4))


def test_mean_direction_follows_its_definition():
    eta, owner = prompts_of_classes(8, dim=6)
    fused = fuse_prompts(eta, owner, len(SIZES), fusion="mean_direction")
    for number in range(len(SIZES)):
        own = eta[owner == number]
        mean = sum(row / row.norm() for row in own)
        torch.testing.assert_close(fused[number], own.norm(dim=1).mean() * mean / mean.norm())


@pytest.mark.parametrize("law", LAWS)
def test_the_mean_log_likelihood_is_that_of_the_single_distributions(law, monkeypatch):
    eta, owner = prompts_of_classes(9, dim=6)
    images = F.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64), dim=-1)
    monkeypatch.setattr(prompt_fusion, "SCORES_AT_A_TIME", 2 * len(owner) + 1)  # two images at a time
    found = mean_log_likelihood(eta, owner, len(SIZES), 3 * images, Likelihood(law))
    for number in range(len(SIZES)):
        logs = [LAWS[law].from_natural_parameter(row).log_prob(images) for row in eta[owner == number]]
        torch.testing.assert_close(found[number], sum(logs) / len(logs) - uniform_log_density(6))


def test_disagreeing_prompts_lose_by_the_mean_log_likelihood_what_the_product_grants_them():
    # Of vMF prompts of equal concentration the two differ by the same for every image: the normaliser's convexity.
    eta, owner = prompts_of_classes(10, dim=6, sizes=(4,))
    eta = 5 * F.normalize(eta, dim=-1)
    images = F.normalize(torch.randn(20, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64), dim=-1)
    fused = VonMisesFisher.from_natural_parameter(fuse_prompts(eta, owner, 1)[0])
    likelihood = fused.log_prob(images) - uniform_log_density(6)
    difference = likelihood - mean_log_likelihood(eta, owner, 1, images, Likelihood("vmf"))[0]
    assert difference.std() < 1e-12 and difference.mean() > 0.05
    assert math.isclose(float(difference.min()), float(difference.max()), rel_tol=1e-9)
