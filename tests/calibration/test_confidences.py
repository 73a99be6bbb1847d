"""The worth of a confidence: AUROC against scikit-learn, what is not trusted and why, and intervals that cover."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from modeling_asymvlm.calibration import confidences
from modeling_asymvlm.calibration.confidences import CalibratedConfidence, MeasuredConfidence, posterior_log_odds


def scored(seed: int, slope: float, queries: int = 400):
    """Scores, and answers that are right with log-odds of `slope` times the score."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(queries, generator=generator)
    correct = torch.rand(queries, generator=generator) < (slope * score).sigmoid()
    images = torch.arange(queries) // 2
    return score, correct, images


def fitted(seed: int, slope: float, queries: int = 400) -> CalibratedConfidence:
    score, correct, images = scored(seed, slope, queries)
    return CalibratedConfidence.fit(score, correct, images, images % 5, gallery_size=70)


@pytest.mark.parametrize("seed", range(3))
def test_the_measured_auroc_is_that_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    score, correct, _ = scored(seed, 1.5)
    measured = fitted(seed, 1.5).measured
    assert measured.auroc == pytest.approx(metrics.roc_auc_score(correct, score), abs=1e-12)
    low, high = measured.auroc_interval
    assert low < measured.auroc < high and measured.aurc_interval[0] < measured.aurc < measured.aurc_interval[1]
    assert (measured.num_queries, measured.gallery_size) == (400, 70)
    assert measured.is_trusted and measured.reason is None


def test_the_measured_auroc_counts_ties_half():
    metrics = pytest.importorskip("sklearn.metrics")
    score, correct, images = scored(0, 1.5)
    measured = CalibratedConfidence.fit(score.round(), correct, images, images % 5, 70).measured
    assert measured.auroc == pytest.approx(metrics.roc_auc_score(correct, score.round()), abs=1e-12)


def test_the_calibration_error_is_that_of_fits_without_the_query():
    score, correct, images = scored(1, 2.0, queries=3000)
    measured = CalibratedConfidence.fit(score, correct, images, images % 5, 70).measured
    assert measured.expected_calibration_error < 0.05
    overconfident = MeasuredConfidence.of(score, (6 * score).sigmoid().numpy(), correct, images, 70)
    assert overconfident.expected_calibration_error > 0.08
    assert overconfident.auroc == measured.auroc


@pytest.mark.parametrize("slope", [0.0, -2.0])
def test_random_and_inverted_scores_are_not_trusted(slope):
    measured = fitted(2, slope).measured
    assert not measured.is_trusted
    low, high = measured.auroc_interval
    assert f"on 400 held-out captions its AUROC is {measured.auroc:.2f} [{low:.2f}, {high:.2f}]" in measured.reason
    assert "not certain to be better than chance" in measured.reason


@pytest.mark.parametrize("right", [True, False])
def test_answers_that_are_all_alike_leave_nothing_to_trust(right):
    score, _, images = scored(3, 1.0)
    confidence = CalibratedConfidence.fit(score, torch.full((400,), right), images, images % 5, 70)
    assert math.isnan(confidence.measured.auroc) and not confidence.measured.is_trusted
    assert "all first results of 400 held-out captions were alike" in confidence.measured.reason
    probability = confidence.probability(score)
    assert ((probability > 0.99) if right else (probability < 0.01)).all()


@pytest.mark.parametrize("slope", [1.5, 0.0])
def test_measures_come_back_from_json(slope):
    measured = fitted(4, slope).measured
    assert MeasuredConfidence.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured


def test_a_measure_with_a_name_too_many_or_too_few_is_refused():
    values = fitted(4, 1.0).measured.to_dict()
    with pytest.raises(TypeError):
        MeasuredConfidence.from_dict({**values, "more": 1})
    values.pop("auroc_interval")
    with pytest.raises(KeyError):
        MeasuredConfidence.from_dict(values)


def test_intervals_are_those_of_wilson_in_ascending_bins():
    score, correct, _ = scored(5, 1.5)
    confidence = fitted(5, 1.5)
    highest, share, low, high = confidence.rates.T
    assert len(highest) == 10 and (np.diff(highest) > 0).all()
    bins = np.array_split(np.argsort(confidence.probability(score), kind="stable"), 10)
    for row, members in enumerate(bins):
        hits = int(correct[members].sum())
        expected = stats.binomtest(hits, len(members)).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose([low[row], high[row]], [expected.low, expected.high], atol=1e-6)
        assert share[row] == pytest.approx(hits / len(members))
        np.testing.assert_array_equal(
            confidence.interval(confidence.probability(score[members])), np.tile([low[row], high[row]], (40, 1))
        )
    np.testing.assert_array_equal(confidence.interval(np.array([0.0, 1.0])), confidence.rates[[0, -1], 2:])


def test_intervals_cover_the_probability_of_their_bin(monkeypatch):
    monkeypatch.setattr(confidences, "NUM_RESAMPLES", 20)  # of the AUROC, which is not asked for
    covered = []
    for seed in range(40):
        score, _, _ = scored(seed, 1.5)
        confidence = fitted(seed, 1.5)
        true = (1.5 * score.double()).sigmoid().numpy()
        for members in np.array_split(np.argsort(score.numpy(), kind="stable"), 10):
            low, high = confidence.interval(confidence.probability(score[members[:1]]))[0]
            covered.append(low <= true[members].mean() <= high)
    assert 0.93 < np.mean(covered) <= 1.0


@pytest.mark.parametrize(("queries", "bins"), [(20, 1), (39, 1), (60, 3), (400, 10)])
def test_a_bin_holds_twenty_captions_at_least(queries, bins):
    score, correct, images = scored(6, 1.0, queries)
    assert len(CalibratedConfidence.fit(score, correct, images, images % 5, 70).rates) == bins


def test_log_odds_of_a_posterior_are_those_of_float64():
    posterior = torch.tensor([1e-30, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-9], dtype=torch.float64)
    np.testing.assert_allclose(posterior_log_odds(posterior.log()), torch.logit(posterior), rtol=1e-6)
    assert posterior_log_odds(torch.tensor([0.0, 1e-9])).tolist() == pytest.approx([27.631, 27.631], abs=1e-2)


def test_log_odds_that_are_right_are_left_alone_by_few_queries():
    score, correct, images = scored(3, 1.0, queries=40)
    log_odds = 4 * score  # too certain: 40 queries say so, but not by how much
    plain, believed = (
        CalibratedConfidence.fit(log_odds, correct, images, images % 5, 70, is_log_odds=is_log_odds)
        for is_log_odds in (False, True)
    )
    slopes = [float(each.regression.weights) for each in (plain, believed)]
    assert 0 < slopes[0] < slopes[1] < 1
