"""The retrieval posterior, its temperature and its calibration, against SciPy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from modeling_asymvlm.evaluation import (
    EmbeddingScores,
    calibration_metrics,
    fit_logit_scale,
    rank_both_ways,
    retrieval_posterior,
    scale_fit,
)
from tests.support.retrieval_cases import random_case


def own_probability(scores, index, scale):
    """Posterior of the right answers of every caption, and of every image that has captions."""
    by_text, by_image = special.softmax(scale * scores, axis=1), special.softmax(scale * scores, axis=0)
    queries = np.unique(index)
    return by_text[np.arange(len(index)), index], np.array([by_image[index == q, q].sum() for q in queries])


@pytest.mark.parametrize("distinct", [1, 5, 10**6])
@pytest.mark.parametrize("tile_size", [None, 6])
def test_posteriors_are_those_of_a_softmax_over_the_gallery(distinct, tile_size):
    for scale in (0.01, 2.0, 60.0):
        scores, index = random_case(3, distinct=distinct)
        scores = scores - 7 if distinct != 10**6 else scores / 10**5
        queries = np.unique(index)
        posterior = retrieval_posterior(scores, index, logit_scale=scale, tile_size=tile_size)
        ranks = rank_both_ways(scores, index)
        np.testing.assert_array_equal(posterior.text_to_image.top, ranks.text_to_image_top)
        np.testing.assert_array_equal(posterior.image_to_text.top, ranks.image_to_text_top)
        own = own_probability(scores, index, scale)
        for result, matrix, of_own in (
            (posterior.text_to_image, scores, own[0]),
            (posterior.image_to_text, scores.T[queries], own[1]),
        ):
            probability = special.softmax(scale * matrix, axis=1)
            ordered = np.sort(matrix, axis=1)[:, ::-1]
            np.testing.assert_array_equal(result.top_score, ordered[:, 0])
            np.testing.assert_array_equal(result.second_score, ordered[:, 1])
            np.testing.assert_allclose(result.score_margin, ordered[:, 0] - ordered[:, 1])
            best = np.sort(probability, axis=1)[:, ::-1]
            np.testing.assert_allclose(result.top_probability, best[:, 0], rtol=1e-10)
            np.testing.assert_allclose(result.margin, best[:, 0] - best[:, 1], rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(result.entropy, stats.entropy(probability, axis=1), rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(result.own_log_probability, np.log(of_own), rtol=1e-9, atol=1e-12)


def test_single_precision_functions_and_embeddings():
    generator = torch.Generator().manual_seed(0)
    texts, images = torch.randn(300, 8, generator=generator), torch.randn(50, 8, generator=generator)
    index = torch.arange(300) % 50
    scores = (texts @ images.T).double().numpy()
    expected = retrieval_posterior(scores, index, logit_scale=3.0)
    for given in (texts @ images.T, EmbeddingScores(texts, images), lambda rows: texts[rows] @ images.T):
        posterior = retrieval_posterior(given, index, logit_scale=3.0, num_images=50, tile_size=64)
        for direction in ("text_to_image", "image_to_text"):
            for name in ("top_probability", "entropy", "own_log_probability"):
                single, double = (getattr(getattr(p, direction), name) for p in (posterior, expected))
                np.testing.assert_allclose(single, double, rtol=2e-5, atol=2e-6)


def test_large_scales_do_not_overflow_and_a_gallery_of_one_is_certain():
    scores = np.array([[1.0, -1.0], [0.5, 0.75]]) * 1e4
    posterior = retrieval_posterior(scores, [0, 1], logit_scale=1e3)
    np.testing.assert_array_equal(posterior.text_to_image.top_probability, [1, 1])
    np.testing.assert_array_equal(posterior.image_to_text.entropy, [0, 0])
    alone = retrieval_posterior([[0.3]], [0], logit_scale=1.0).text_to_image
    assert (alone.top_probability[0], alone.entropy[0], alone.margin[0]) == (1, 0, 1)
    assert alone.second_score[0] == -math.inf


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
def test_the_fitted_scale_is_that_of_a_general_minimiser(direction):
    for seed in range(4):
        generator = np.random.default_rng(seed)
        scores = generator.normal(size=(90, 30)) * 0.2
        index = np.arange(90) % 30 if direction == "text_to_image" else np.arange(90) % 25
        scores[np.arange(90), index] += 0.25

        def negative_log_likelihood(log_scale, scores=scores, index=index):
            own = own_probability(scores, index, math.exp(log_scale))
            return -np.log(own[direction == "image_to_text"]).mean()

        expected = optimize.minimize_scalar(negative_log_likelihood, bounds=(-5, 6), method="bounded")
        scale = fit_logit_scale(scores, index, direction=direction, tile_size=17)
        assert negative_log_likelihood(math.log(scale)) <= expected.fun + 1e-12
        assert scale == pytest.approx(math.exp(expected.x), rel=1e-3)
        posterior = getattr(retrieval_posterior(scores, index, logit_scale=scale), direction)
        assert -posterior.own_log_probability.mean() == pytest.approx(expected.fun, rel=1e-9)


def test_scores_without_a_best_scale_are_refused():
    index = np.arange(20)
    with pytest.raises(ValueError, match="own answers score -0.95 above the mean of the gallery"):
        fit_logit_scale(-np.eye(20), index)
    with pytest.raises(ValueError, match="`direction` is 'both'"):
        fit_logit_scale(np.eye(20), index, direction="both")


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
@pytest.mark.parametrize("captions", [20, 40])
def test_a_perfect_gallery_bounds_the_scale_and_says_so(direction, captions):
    generator = np.random.default_rng(captions)
    index = np.arange(captions) % 20
    scores = generator.normal(size=(captions, 20)) * 0.1
    scores[np.arange(captions), index] += 1.0
    with pytest.warns(UserWarning, match="every query finds its own answer first") as caught:
        scale = fit_logit_scale(scores, index, direction=direction)
    queries = captions if direction == "text_to_image" else 20
    assert f"1/{queries + 1} nats" in str(caught[0].message)

    def excess(scale):
        return -np.log(own_probability(scores, index, scale)[direction == "image_to_text"]).mean() - 1 / (queries + 1)

    assert scale == pytest.approx(optimize.brentq(excess, 0.01, 200), rel=1e-5)


def test_ties_of_a_perfect_gallery_do_not_count_against_its_bound():
    """Two images that are alike for every text: the likelihood tends to that of guessing between them."""
    scores = np.repeat(np.eye(10), 2, axis=1)[:, :20]
    with pytest.warns(UserWarning, match="every query finds its own answer first"):
        scale = fit_logit_scale(scores, 2 * np.arange(10))
    assert scale == pytest.approx(math.log(9 / math.expm1(1 / 11)), rel=1e-5)


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
@pytest.mark.parametrize("kind", ["array", "function", "embeddings"])
def test_a_scale_that_begins_with_a_sample_is_that_of_all_scores(direction, kind, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(300, 16, generator=generator), dim=-1)
    index = np.arange(900) // 3
    texts = torch.nn.functional.normalize(images[index] + torch.randn(900, 16, generator=generator) * 0.4, dim=-1)
    scores = (texts @ images.T).double().numpy()
    given = {"array": texts @ images.T, "function": lambda rows: texts[rows] @ images.T}
    given["embeddings"] = EmbeddingScores(texts, images)
    monkeypatch.setattr(scale_fit, "SAMPLED_SCORES", 200 * 300)
    passes = []
    call = scale_fit._Likelihood.__call__

    def counted(self, scale):
        passes.append(self.scores is given[kind])
        return call(self, scale)

    monkeypatch.setattr(scale_fit._Likelihood, "__call__", counted)
    scale = fit_logit_scale(given[kind], index, direction=direction, num_images=300)

    def slope(scale):
        by_text = special.softmax(scale * scores, axis=1 if direction == "text_to_image" else 0)
        if direction == "text_to_image":
            return (by_text * scores).sum() - scores[np.arange(900), index].sum()
        own = [special.softmax(scale * scores[index == image, image]) for image in range(300)]
        of_own = sum(weight @ scores[index == image, image] for image, weight in enumerate(own))
        return (by_text * scores).sum() - of_own

    assert scale == pytest.approx(optimize.brentq(slope, 1, 200), rel=5e-6)
    assert sum(passes) <= 2


def test_bad_scores_and_scales_are_refused():
    scores, index = random_case(0)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`logit_scale` is"):
            retrieval_posterior(scores, index, logit_scale=scale)
    scores[30, 2] = -np.inf
    with pytest.raises(ValueError, match="rows 0 to 46 are NaN or infinite"):
        retrieval_posterior(scores, index, logit_scale=1.0)


@pytest.mark.parametrize(
    ("strategy", "num_bins"), [("uniform", 1), ("uniform", 10), ("quantile", 4), ("quantile", 10)]
)
def test_calibration_is_that_of_scikit_learn(strategy, num_bins):
    for seed in range(8):
        generator = np.random.default_rng(seed)
        confidence = generator.integers(0, 41, size=90) / 40 * 0.98 + 0.01
        correct = generator.random(90) < confidence**2
        metrics = calibration_metrics(confidence, torch.tensor(correct), num_bins=num_bins, strategy=strategy)
        accuracy, stated = calibration_curve(correct, confidence, n_bins=num_bins, strategy=strategy)
        assert metrics["bin_accuracy"] == pytest.approx(accuracy, rel=1e-12)
        assert metrics["bin_confidence"] == pytest.approx(stated, rel=1e-12)
        assert sum(metrics["bin_count"]) == 90 and 0 not in metrics["bin_count"]
        gaps = np.abs(accuracy - stated)
        expected = np.average(gaps, weights=metrics["bin_count"])
        assert metrics["expected_calibration_error"] == pytest.approx(expected, rel=1e-12)
        assert metrics["maximum_calibration_error"] == pytest.approx(gaps.max(), rel=1e-12)
        assert metrics["brier_score"] == pytest.approx(brier_score_loss(correct, confidence), rel=1e-12)
        assert metrics["log_loss"] == pytest.approx(log_loss(correct, confidence), rel=1e-12)


def test_chances_count_as_right_and_as_wrong():
    generator = np.random.default_rng(0)
    confidence, chance = generator.random(50), generator.random(50)
    outcomes, twice = np.repeat([True, False], 50), np.concatenate([confidence, confidence])
    weights = np.concatenate([chance, 1 - chance])
    metrics = calibration_metrics(confidence, chance)
    assert metrics["brier_score"] == pytest.approx(brier_score_loss(outcomes, twice, sample_weight=weights), rel=1e-12)
    assert metrics["log_loss"] == pytest.approx(log_loss(outcomes, twice, sample_weight=weights), rel=1e-12)


def test_certainty_that_is_wrong_has_an_infinite_log_loss_and_that_is_right_none():
    assert calibration_metrics([1.0, 0.0], [1, 0])["log_loss"] == 0
    assert calibration_metrics([1.0, 0.5], [0, 1])["log_loss"] == math.inf
    one = calibration_metrics([0.3], [1])
    assert (one["expected_calibration_error"], one["bin_count"]) == (pytest.approx(0.7), [1])


def test_bad_confidences_are_refused():
    with pytest.raises(ValueError, match="`confidence` contains 1.5"):
        calibration_metrics([0.1, 1.5], [1, 0])
    with pytest.raises(ValueError, match="`correct` contains 2"):
        calibration_metrics([0.1, 0.5], [1, 2])
    with pytest.raises(ValueError, match="`num_bins` is 0"):
        calibration_metrics([0.1], [1], num_bins=0)
    with pytest.raises(ValueError, match="`strategy` is 'equal'"):
        calibration_metrics([0.1], [1], strategy="equal")
