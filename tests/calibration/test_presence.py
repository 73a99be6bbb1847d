"""Whether the answer is there: statistics of galleries against brute force, Bayes' theorem and planted pairs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_asymvlm.calibration.presence import (
    GALLERY_SHARES,
    PRESENCE_FEATURES,
    Presence,
    gallery_cosines,
    presence_features,
    presence_trials,
)
from modeling_asymvlm.calibration.regression import LogisticRegression, RidgeRegression
from modeling_asymvlm.evaluation import selective_metrics


DIM = 16
NOTHING_EXPECTED = RidgeRegression(torch.zeros(DIM, dtype=torch.float64), 0.25)


def planted(seed: int, images: int = 60, captions: int = 120, noise: float = 0.7):
    generator = torch.Generator().manual_seed(seed)
    image_embeds = F.normalize(torch.randn(images, DIM, generator=generator), dim=-1)
    index = torch.arange(captions) % images
    noises = noise * torch.randn(captions, DIM, generator=generator) / math.sqrt(DIM)
    kappa = 5 + 10 * torch.rand(captions, 1, generator=generator)
    return kappa * F.normalize(image_embeds[index] + noises, dim=-1), image_embeds, index


@pytest.mark.parametrize("images", [3, 40])
@pytest.mark.parametrize("with_answer", [True, False])
def test_statistics_of_a_gallery_are_those_of_its_rows(images, with_answer):
    generator = torch.Generator().manual_seed(images)
    cosines = 2 * torch.rand(9, images, generator=generator) - 1
    left_out = None if with_answer else torch.randint(0, images, (9,), generator=generator)
    found = gallery_cosines(cosines, left_out)
    assert found.num_images == images - (not with_answer)
    for text in range(9):
        row = cosines[text].double().numpy()
        if left_out is not None:
            row = np.delete(row, left_out[text].item())
        ordered = np.sort(row)[::-1]
        of_text = [column[text].item() for column in found[:4]]
        np.testing.assert_allclose(of_text, [ordered[0], ordered[1], row.mean(), row.std()], rtol=1e-9)


def test_features_of_presence_are_what_their_names_say():
    text_embeds, image_embeds, _ = planted(0)
    cosines = F.normalize(text_embeds, dim=-1) @ image_embeds.T
    own = RidgeRegression(torch.arange(DIM).double(), 0.5)
    features = presence_features(text_embeds, gallery_cosines(cosines), own)
    assert features.shape == (len(text_embeds), len(PRESENCE_FEATURES)) and features.dtype == torch.float64
    values = cosines.double().numpy()
    first, second = -np.sort(-values, axis=1)[:, :2].T
    units = F.normalize(text_embeds, dim=-1).double().numpy()
    expected = [
        first,
        (first - values.mean(axis=1)) / values.std(axis=1),
        first - second,
        units @ np.arange(DIM) + 0.5,
        np.full(len(first), np.log(len(image_embeds))),
    ]
    np.testing.assert_allclose(features, np.stack(expected, axis=1), rtol=1e-9, atol=1e-9)


def test_a_gallery_of_equal_cosines_has_finite_features():
    features = presence_features(torch.ones(1, DIM), gallery_cosines(torch.full((1, 5), 0.5)), NOTHING_EXPECTED)
    assert torch.isfinite(features).all()


def logit(probability):
    return np.log(probability) - np.log1p(-probability)


@pytest.mark.parametrize("prior", [0.01, 0.3, 0.5, 0.9])
def test_a_prior_moves_the_log_odds_by_its_own(prior):
    text_embeds, image_embeds, _ = planted(1)
    cosines = gallery_cosines(F.normalize(text_embeds, dim=-1) @ image_embeds.T)
    weights = torch.tensor([2.0, 0.1, 1.0, -1.0, 0.2], dtype=torch.float64)
    present = Presence(NOTHING_EXPECTED, LogisticRegression(weights, -2.0))
    plain = present.probability(text_embeds, cosines)
    moved = present.probability(text_embeds, cosines, prior)
    assert plain.dtype == torch.float64
    np.testing.assert_allclose(logit(moved.numpy()) - logit(plain.numpy()), logit(prior), atol=1e-9)
    odds = plain / (1 - plain) * prior / (1 - prior)  # Bayes' theorem
    np.testing.assert_allclose(moved, odds / (1 + odds), rtol=1e-9)


@pytest.mark.parametrize("prior", [0, 1, -0.1, 1.5, float("nan")])
def test_a_prior_that_is_no_share_is_refused(prior):
    text_embeds, image_embeds, _ = planted(2)
    cosines = gallery_cosines(F.normalize(text_embeds, dim=-1) @ image_embeds.T)
    present = Presence(NOTHING_EXPECTED, LogisticRegression(torch.zeros(5, dtype=torch.float64), 0.0))
    with pytest.raises(ValueError, match=f"between 0 and 1, got {prior}"):
        present.probability(text_embeds, cosines, prior)


def test_trials_ask_each_caption_with_and_without_its_image():
    text_embeds, image_embeds, index = planted(3, images=100, captions=150)
    trials = presence_trials(text_embeds, image_embeds, index, NOTHING_EXPECTED, shares=(1.0,))
    assert trials.features.shape == (300, 5)
    assert torch.equal(trials.present, torch.cat([torch.ones(150), torch.zeros(150)]).double())
    assert torch.equal(trials.caption, torch.arange(150).repeat(2))
    cosines = (F.normalize(text_embeds, dim=-1) @ image_embeds.T).double()
    own = cosines[torch.arange(150), index]
    others = cosines.scatter(1, index[:, None], -2.0)
    best, second = others.topk(2, dim=1).values.T
    first = trials.features[:, 0]
    one_other_less = [torch.isclose(first[:150], torch.maximum(own, each), atol=1e-6) for each in (best, second)]
    assert (one_other_less[0] | one_other_less[1]).all()
    np.testing.assert_allclose(first[150:], best, atol=1e-6)
    np.testing.assert_allclose(trials.features[:, 4], np.log(99))


def test_galleries_come_in_several_sizes_and_hold_the_images_that_are_asked_for():
    text_embeds, image_embeds, index = planted(4, images=100, captions=200)
    trials = presence_trials(text_embeds, image_embeds, index, NOTHING_EXPECTED, seed=9)
    sizes = trials.features[:, 4].exp().round().long()
    for share in GALLERY_SHARES:
        size = round(100 * share)
        with_image, without = ((sizes == size - 1) & (trials.present == present) for present in (1, 0))
        assert with_image.sum() == without.sum() == 2 * size  # two captions an image
        assert torch.equal(trials.caption[with_image], trials.caption[without])
    again = presence_trials(text_embeds, image_embeds, index, NOTHING_EXPECTED, seed=9)
    assert torch.equal(again.features, trials.features)
    other = presence_trials(text_embeds, image_embeds, index, NOTHING_EXPECTED, seed=10)
    assert not torch.equal(other.features, trials.features)


def test_galleries_below_twenty_images_are_left_out():
    text_embeds, image_embeds, index = planted(5, images=50, captions=50)
    trials = presence_trials(text_embeds, image_embeds, index, NOTHING_EXPECTED)
    assert set(trials.features[:, 4].exp().round().long().tolist()) == {49, 24}


def test_presence_of_planted_pairs_is_found_on_others():
    def trials(seed: int):
        return presence_trials(*planted(seed, images=200, captions=400), NOTHING_EXPECTED, seed=seed)

    fitted, fresh = trials(6), trials(7)
    regression = LogisticRegression.fit(fitted.features, fitted.present)
    probability, present = regression(fresh.features).numpy(), fresh.present.numpy()
    assert selective_metrics(-probability, present)["auroc"] > 0.85
    assert abs(probability.mean() - 0.5) < 0.05
    certain = probability > 0.8
    assert abs(present[certain].mean() - probability[certain].mean()) < 0.06


def test_the_size_of_a_gallery_does_not_give_the_answer_away():
    text_embeds, image_embeds, index = planted(8, images=30, captions=60)
    shuffled = index[torch.randperm(60, generator=torch.Generator().manual_seed(8))]
    trials = presence_trials(text_embeds, image_embeds, shuffled, NOTHING_EXPECTED)
    sizes = trials.features[:, 4]
    assert torch.equal(sizes[trials.present == 1], sizes[trials.present == 0])
    probability = LogisticRegression.fit(trials.features, trials.present)(trials.features).numpy()
    assert selective_metrics(-probability, trials.present.numpy())["auroc"] < 0.6
