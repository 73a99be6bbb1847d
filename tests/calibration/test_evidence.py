"""The evidence of images and the correction by it, against float64 sums and the optimisers of scipy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import optimize, special

from modeling_asymvlm import AsymVLMConfig
from modeling_asymvlm.calibration.evidence import (
    TILE_IMAGES,
    TILE_TEXTS,
    EvidenceCorrection,
    folds_of_images,
    log_evidence,
)


DISTRIBUTIONS = ("vmf", "power_spherical", "deterministic")


def exact_delta(distribution: str, texts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Log density against the uniform one, float64, from the normalisers of scipy; a cosine if deterministic."""
    kappa = np.linalg.norm(texts, axis=1, keepdims=True)
    cosine = (texts / kappa) @ (images / np.linalg.norm(images, axis=1, keepdims=True)).T
    dim = texts.shape[1]
    if distribution == "deterministic":
        return cosine
    if distribution == "vmf":
        order = dim / 2 - 1
        bessel = np.log(special.ive(order, kappa)) + kappa
        return kappa * cosine + order * np.log(kappa / 2) - special.gammaln(order + 1) - bessel
    half = (dim - 1) / 2
    log_mean = kappa * np.log(2) + special.betaln(half + kappa, half) - special.betaln(half, half)
    return kappa * np.log1p(cosine) - log_mean


def random_pairs(seed: int, texts: int, images: int, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(texts, dim, generator=generator), dim=-1)
    kappa = 1 + 20 * torch.rand(texts, 1, generator=generator)
    return kappa * directions, F.normalize(torch.randn(images, dim, generator=generator), dim=-1)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("texts", "images"), [(1, 1), (37, 5), (TILE_TEXTS, 3), (TILE_TEXTS + 1, 3), (2100, 2), (30, TILE_IMAGES + 7)]
)
def test_log_evidence_is_the_log_of_the_mean_power_of_the_likelihoods(distribution, texts, images):
    text_embeds, image_embeds = random_pairs(texts + images, texts, images)
    scores, tau = AsymVLMConfig(distribution=distribution, projection_dim=6).law.scores, 1.7
    found = log_evidence(scores, tau, text_embeds, image_embeds)
    delta = exact_delta(distribution, text_embeds.double().numpy(), image_embeds.double().numpy())
    assert found.dtype == torch.float64 and found.shape == (images,)
    np.testing.assert_allclose(found, special.logsumexp(tau * delta, axis=0) - np.log(texts), atol=1e-4)


def test_log_evidence_neither_overflows_nor_loses_a_peak_of_another_tile():
    def scores(texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return texts[:, :1] + images[:, 0]

    values = torch.full((2 * TILE_TEXTS, 1), -900.0)
    values[3], values[-1] = 500.0, 501.0
    for order in (values, values.flip(0)):
        found = log_evidence(scores, 1.0, order, torch.tensor([[0.0], [300.0]]))
        expected = 501 + np.log1p(np.exp(-1)) - np.log(2 * TILE_TEXTS)
        np.testing.assert_allclose(found, [expected, expected + 300], atol=1e-4)


def held_out_case(
    seed: int, *, popularity: float, captions: int = 150, images: int = 30
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits to which some images add `popularity` times their evidence for every caption."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(captions) % images
    evidence = torch.randn(images, generator=generator, dtype=torch.float64)
    logits = 2 * torch.randn(captions, images, generator=generator, dtype=torch.float64)
    logits[torch.arange(captions), index] += 5.0
    return (logits + popularity * evidence).float(), evidence, index


def smoothed_cross_entropy(logits: np.ndarray, index: np.ndarray) -> float:
    """Of labels that are, all together, half a caption's worth of any image alike."""
    smoothing = 0.5 / len(index)
    target = np.full(logits.shape, smoothing / logits.shape[1])
    target[np.arange(len(index)), index] += 1 - smoothing
    return float(-np.mean(np.sum(target * special.log_softmax(logits, axis=1), axis=1)))


@pytest.mark.parametrize("seed", range(4))
def test_sigma_and_beta_minimise_the_cross_entropy(seed):
    logits, evidence, index = held_out_case(seed, popularity=2.0)
    fitted = EvidenceCorrection.fit(logits, evidence, index, seed=seed)

    def loss(point: np.ndarray) -> float:
        return smoothed_cross_entropy(
            point[0] * (logits.double().numpy() - point[1] * evidence.numpy()), index.numpy()
        )

    found = optimize.minimize(loss, [1.0, 0.5], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-13})
    assert fitted.beta > 0.5
    np.testing.assert_allclose([fitted.sigma, fitted.beta], found.x, rtol=1e-4)
    applied = fitted.apply(logits.double(), evidence).numpy()
    np.testing.assert_allclose(applied, fitted.sigma * (logits.numpy() - fitted.beta * evidence.numpy()), rtol=1e-12)


@pytest.mark.parametrize("popularity", [-2.0, -0.5])
def test_evidence_that_points_the_wrong_way_leaves_the_ranking(popularity):
    logits, evidence, index = held_out_case(11, popularity=popularity)
    fitted = EvidenceCorrection.fit(logits, evidence, index)
    assert fitted.beta == 0
    assert fitted.sigma == pytest.approx(EvidenceCorrection.fit_scale(logits, index), rel=1e-4)


def test_beta_of_noise_is_nothing_or_next_to_it():
    betas = [EvidenceCorrection.fit(*held_out_case(seed, popularity=0.0), seed=seed).beta for seed in range(20)]
    assert np.mean(np.equal(betas, 0)) >= 0.7
    assert max(betas) < 0.4


@pytest.mark.parametrize("seed", [0, 10, 28])  # 10 and 28: evidence gains on the folds, yet beta is below 0 on all
def test_where_beta_is_0_sigma_is_that_of_least_cross_entropy(seed):
    logits, evidence, index = held_out_case(seed, popularity=0.0, captions=40, images=20)
    fitted = EvidenceCorrection.fit(logits, evidence, index, seed=seed)
    assert fitted.beta == 0
    assert fitted.sigma == pytest.approx(EvidenceCorrection.fit_scale(logits, index), rel=1e-4)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 50.0])
def test_fit_scale_is_that_of_scipy(factor):
    logits, _, index = held_out_case(5, popularity=0.0)
    scores = factor * logits
    found = EvidenceCorrection.fit_scale(scores, index)

    def loss(log_scale: float) -> float:
        return smoothed_cross_entropy(np.exp(log_scale) * scores.double().numpy(), index.numpy())

    bounds = (-4 - np.log(factor), 4 - np.log(factor))
    expected = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    assert np.log(found) == pytest.approx(expected.x, abs=1e-4)


def test_scores_that_always_find_their_image_stay_finite():
    index = torch.arange(30)
    fitted = EvidenceCorrection.fit(10 * torch.eye(30), torch.randn(30, dtype=torch.float64), index)
    assert np.isfinite([fitted.sigma, fitted.beta]).all() and fitted.sigma > 0
    scale = EvidenceCorrection.fit_scale(torch.eye(30), index)
    own = special.expit(scale - np.log(29))  # the share of the own image among 30
    assert own == pytest.approx(1 - 0.5 / 30 * 29 / 30, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_captions_of_an_image_share_a_fold(seed):
    index = torch.randint(0, 23, (200,), generator=torch.Generator().manual_seed(seed))
    folds = folds_of_images(index, 5, seed)
    assert folds.shape == index.shape and set(folds.tolist()) == set(range(5))
    for image in index.unique():
        assert len(folds[index == image].unique()) == 1
    sizes = torch.bincount(folds_of_images(torch.arange(23), 5, seed))
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(folds, folds_of_images(index, 5, seed))


@pytest.mark.parametrize("factor", [1e-3, 0.2, 30.0])
def test_the_correction_does_not_depend_on_the_temperature_that_a_model_came_with(factor):
    logits, evidence, index = held_out_case(2, popularity=2.0)
    asked = []

    def evidence_at(scale: float) -> torch.Tensor:
        asked.append(scale)
        return evidence

    own, _ = EvidenceCorrection.fit_at_own_temperature(logits, evidence_at, index)
    other, _ = EvidenceCorrection.fit_at_own_temperature(factor * logits, evidence_at, index)
    assert own.sharpening == asked[0] == 1  # about right: left alone
    assert other.sharpening == asked[1] == pytest.approx(EvidenceCorrection.fit_scale(factor * logits, index))
    scores = own.apply(logits, evidence), other.apply(factor * logits, evidence)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3, atol=1e-3)
    assert other.beta > 0
