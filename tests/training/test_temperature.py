"""The fitted temperature: the minimiser of the objective, and what there is where none exists."""

import pytest
import torch
from scipy.optimize import minimize_scalar

from modeling_asymvlm.model.objective import pair_scores, unified_loss
from modeling_asymvlm.training.temperature import ObjectiveOfTemperature, fit_temperature


def embeds(num_pairs: int, noise: float, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_pairs)
    images = torch.randn(num_pairs, dim, generator=generator)
    texts = images + noise * torch.randn(num_pairs, dim, generator=generator)
    return 30 * torch.nn.functional.normalize(texts, dim=-1), images


def objective_of(blocks, **law) -> ObjectiveOfTemperature:
    objective = ObjectiveOfTemperature()
    for texts, images, ids in blocks:
        objective.add(pair_scores(texts, images, **law), ids)
    return objective


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("start", [1e-3, 0.15, 1.0, 40.0])
def test_the_fit_is_the_minimiser_that_scipy_finds(distribution, with_ids, start):
    blocks = []
    for size in (40, 60):
        texts, images = embeds(size, noise=1.5)
        ids = torch.arange(size) // 2 if with_ids else None
        images = images[2 * ids] if with_ids else images
        blocks.append((texts, images, ids))

    def loss(tau: float) -> float:
        parts = [
            unified_loss(t.double(), v.double(), tau, distribution=distribution, image_ids=ids) * len(t)
            for t, v, ids in blocks
        ]
        return sum(parts).item() / 100

    expected = minimize_scalar(lambda u: loss(2.0**u), bounds=(-15, 15), method="bounded", options={"xatol": 1e-8})
    objective = objective_of(blocks, distribution=distribution)
    fitted = fit_temperature(objective, start=start, smallest_loss=1e-3)
    assert not fitted.at_bound
    assert fitted.logit_scale == pytest.approx(2.0**expected.x, rel=1e-4)
    value, slope, curvature = objective(fitted.logit_scale)
    assert value == pytest.approx(loss(fitted.logit_scale), rel=1e-5)
    assert abs(slope) < 1e-4 and curvature > 0


def test_the_derivatives_are_those_of_the_objective():
    objective = objective_of([(*embeds(30, 1.0), torch.arange(30) % 20)], distribution="vmf")
    step = 1e-3
    below, here, above = (objective(0.3 + shift) for shift in (-step, 0.0, step))
    assert (above[0] - below[0]) / (2 * step) == pytest.approx(here[1], rel=1e-3)
    assert (above[1] - below[1]) / (2 * step) == pytest.approx(here[2], rel=1e-3)


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e3])
def test_pairs_that_are_all_told_apart_get_a_bound(start):
    objective = objective_of([(*embeds(50, noise=0.01), None)], distribution="vmf")
    fitted = fit_temperature(objective, start=start, smallest_loss=1 / 51)
    assert fitted.at_bound
    assert objective(fitted.logit_scale)[0] == pytest.approx(1 / 51, rel=1e-3)


def test_pairs_that_contradict_their_scores_get_the_least_temperature_and_end():
    texts, images = embeds(50, noise=0.01)
    fitted = fit_temperature(objective_of([(texts, -images, None)], distribution="vmf"), start=1.0, smallest_loss=0.01)
    assert 0 < fitted.logit_scale < 1e-5 and not fitted.at_bound


@pytest.mark.parametrize("ids", [None, torch.zeros(9, dtype=torch.long)])
def test_nothing_to_contrast_leaves_the_temperature(ids):
    texts, images = embeds(9, noise=1.0)
    if ids is None:
        texts, images = texts[:1].expand(9, -1), images[:1].expand(9, -1)
    objective = objective_of([(texts, images, ids)], distribution="vmf")
    assert fit_temperature(objective, start=0.7, smallest_loss=0.1).logit_scale == 0.7
