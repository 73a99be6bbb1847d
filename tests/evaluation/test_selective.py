"""Risk–coverage and the detection of errors, against scikit-learn and the mean over all orders of ties."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from modeling_asymvlm.evaluation import risk_coverage_curve, selective_metrics


def random_queries(seed, count=60, distinct=12):
    generator = np.random.default_rng(seed)
    uncertainty = generator.integers(0, distinct, size=count) / 3
    return uncertainty, generator.random(count) > uncertainty / 6


@pytest.mark.parametrize("distinct", [2, 12, 10**6])
def test_detection_of_errors_is_that_of_scikit_learn(distinct):
    for seed in range(10):
        uncertainty, correct = random_queries(seed, distinct=distinct)
        uncertainty = uncertainty / uncertainty.max() * 4
        correct[:2] = [True, False]
        metrics = selective_metrics(torch.tensor(uncertainty), correct)
        assert metrics["auroc"] == pytest.approx(roc_auc_score(~correct, uncertainty), rel=1e-12)
        assert metrics["aupr"] == pytest.approx(average_precision_score(~correct, uncertainty), rel=1e-12)
        assert metrics["error_rate"] == pytest.approx(1 - correct.mean(), rel=1e-12)


def test_probabilities_of_being_right_are_weights():
    generator = np.random.default_rng(0)
    uncertainty, chance = generator.integers(0, 9, size=40), generator.random(40)
    wrong = np.repeat([True, False], 40)
    weights = np.concatenate([1 - chance, chance])
    twice = np.concatenate([uncertainty, uncertainty])
    metrics = selective_metrics(uncertainty, chance)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(wrong, twice, sample_weight=weights), rel=1e-12)
    assert metrics["aupr"] == pytest.approx(average_precision_score(wrong, twice, sample_weight=weights), rel=1e-12)


def test_risk_is_the_mean_over_all_orders_of_equal_uncertainties():
    for seed in range(5):
        generator = np.random.default_rng(seed)
        uncertainty, correct = generator.integers(0, 3, size=7), generator.random(7) < 0.5
        risks = []
        for order in itertools.permutations(range(7)):
            if all(uncertainty[a] <= uncertainty[b] for a, b in itertools.pairwise(order)):
                risks.append(np.cumsum(~correct[list(order)]) / np.arange(1, 8))
        best = min(np.mean(np.cumsum(order) / np.arange(1, 8)) for order in itertools.permutations(~correct))
        curve = risk_coverage_curve(uncertainty, correct)
        np.testing.assert_allclose(curve["risk"], np.mean(risks, axis=0), rtol=1e-12)
        np.testing.assert_allclose(curve["coverage"], np.arange(1, 8) / 7)
        metrics = selective_metrics(uncertainty, correct)
        assert metrics["aurc"] == pytest.approx(np.mean(risks), rel=1e-12)
        assert metrics["optimal_aurc"] == pytest.approx(best, rel=1e-12)
        assert metrics["excess_aurc"] == pytest.approx(np.mean(risks) - best, rel=1e-9, abs=1e-12)


def test_a_perfect_and_a_useless_uncertainty():
    correct = np.arange(50) < 20
    perfect = selective_metrics(np.arange(50), correct)
    assert (perfect["auroc"], perfect["aupr"], perfect["excess_aurc"]) == (1, 1, 0)
    useless = selective_metrics(np.ones(50), correct)
    assert useless["auroc"] == 0.5
    assert useless["aurc"] == pytest.approx(0.6) and useless["aupr"] == pytest.approx(0.6)
    assert selective_metrics(-np.arange(50), correct)["auroc"] == 0


@pytest.mark.parametrize("correct", [np.ones(5), np.zeros(5)])
def test_nothing_is_detected_where_all_answers_are_alike(correct):
    metrics = selective_metrics(np.arange(5), correct)
    assert math.isnan(metrics["auroc"]) and math.isnan(metrics["aupr"])
    assert metrics["aurc"] == metrics["optimal_aurc"] == 1 - correct[0]


def test_one_query_and_infinite_uncertainty():
    assert selective_metrics([np.inf], [0])["aurc"] == 1
    assert selective_metrics([np.inf, 1, np.inf], [0, 1, 0])["auroc"] == 1


def test_a_thinned_curve_keeps_the_areas_and_the_last_point():
    uncertainty, correct = random_queries(1, count=103)
    whole, thin = (risk_coverage_curve(uncertainty, correct, max_points=points) for points in (None, 10))
    assert len(thin["risk"]) == 10 and thin["aurc"] == whole["aurc"] == pytest.approx(whole["risk"].mean())
    assert thin["coverage"][-1] == 1 and thin["risk"][-1] == whole["risk"][-1]
    assert set(thin["risk"]) <= set(whole["risk"]) and thin["num_queries"] == 103
    assert len(risk_coverage_curve(uncertainty, correct, max_points=1000)["risk"]) == 103


def test_bad_arguments_are_refused():
    for function in (risk_coverage_curve, selective_metrics):
        with pytest.raises(ValueError, match="`correct` contains -1"):
            function([1, 2], [-1, 0])
        with pytest.raises(ValueError, match="1 of 2 values of `uncertainty` are NaN"):
            function([1, np.nan], [1, 0])
        with pytest.raises(ValueError, match=r"`uncertainty` \(0,\)"):
            function([], [])
    with pytest.raises(ValueError, match="`max_points` is 0"):
        risk_coverage_curve([1], [1], max_points=0)
