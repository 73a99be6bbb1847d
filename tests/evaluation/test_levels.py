"""The trend of accuracy over levels of uncertainty, against SciPy and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from modeling_asymvlm.evaluation import rank_correlation, uncertainty_metrics


def brute_force_uncertainty_metrics(uncertainty, correct, num_bins):
    order = sorted(range(len(uncertainty)), key=lambda query: uncertainty[query])
    alike = {value: [correct[other] for other in order if uncertainty[other] == value] for value in uncertainty}
    sizes = [len(order) // num_bins + (level < len(order) % num_bins) for level in range(num_bins)]
    recall, mean = [], []
    for size in sizes:
        members, order = order[:size], order[size:]
        recall.append(round(math.fsum(np.mean(alike[uncertainty[query]]) for query in members) / size, 12))
        mean.append(math.fsum(uncertainty[query] for query in members) / size)
    level = list(range(num_bins))
    fit = np.polyval(np.polyfit(level, recall, 1), level)
    residual = sum((value - line) ** 2 for value, line in zip(recall, fit, strict=True))
    total = sum((value - sum(recall) / num_bins) ** 2 for value in recall)
    spearman = stats.spearmanr(level, recall).statistic
    line = stats.linregress(level, recall)
    r_squared = 1 - residual / total
    return {
        "spearman": spearman,
        "pearson": line.rvalue,
        "r_squared": r_squared,
        "neg_spearman_r_squared": -spearman * r_squared,
        "point_biserial": stats.pointbiserialr(np.asarray(correct, bool), uncertainty).statistic,
        "num_bins": num_bins,
        "bin_recall": recall,
        "bin_uncertainty": mean,
        "bin_count": sizes,
    }


@pytest.mark.parametrize("num_bins", [2, 3, 7, 10])
@pytest.mark.parametrize("num_queries", [50, 103])
def test_uncertainty_metrics_match_brute_force(num_bins, num_queries):
    for seed in range(5):
        generator = np.random.default_rng(seed)
        uncertainty = generator.integers(0, 30, size=num_queries) / 7
        correct = generator.random(num_queries) > uncertainty / 5
        metrics = uncertainty_metrics(uncertainty, correct, num_bins=num_bins)
        expected = brute_force_uncertainty_metrics(uncertainty, correct, num_bins)
        assert list(metrics) == list(expected)
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name


def test_a_straight_fall_scores_the_ideal_exactly():
    uncertainty = np.arange(100.0)
    correct = np.concatenate([np.arange(10) < 10 - level for level in range(10)])
    metrics = uncertainty_metrics(uncertainty, correct)
    assert metrics["spearman"] == -1
    assert metrics["r_squared"] == pytest.approx(1, abs=1e-15)
    assert metrics["neg_spearman_r_squared"] == metrics["r_squared"]
    assert uncertainty_metrics(-uncertainty, correct)["spearman"] == 1


def test_only_the_order_of_uncertainty_decides_the_levels():
    generator = np.random.default_rng(0)
    concentration = torch.tensor(generator.uniform(1, 9, size=200), requires_grad=True)
    correct = torch.tensor(generator.random(200) < 0.5)
    by_inverse = uncertainty_metrics(1 / concentration, correct)
    by_negative = uncertainty_metrics(-concentration, correct.int())
    assert by_inverse["bin_recall"] == by_negative["bin_recall"]
    assert by_inverse["spearman"] == by_negative["spearman"]


def test_levels_are_the_mean_over_all_orders_of_equal_uncertainties():
    uncertainty, correct = np.array([1, 1, 1, 2, 2, 2]), np.array([1, 0, 1, 0, 1, 0])
    of_orders = []
    for first in itertools.permutations(correct[:3]):
        for second in itertools.permutations(correct[3:]):
            of_orders.append(np.reshape([*first, *second], (3, 2)).mean(axis=1))
    metrics = uncertainty_metrics(uncertainty, correct, num_bins=3)
    np.testing.assert_allclose(metrics["bin_recall"], np.mean(of_orders, axis=0), rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_data_decides_nothing(seed):
    generator = np.random.default_rng(seed)
    uncertainty, correct = generator.integers(0, 4, size=60), generator.random(60) < 0.4
    order = generator.permutation(60)
    shuffled, straight = (uncertainty_metrics(uncertainty[rows], correct[rows]) for rows in (order, np.arange(60)))
    np.testing.assert_allclose(shuffled["bin_recall"], straight["bin_recall"], rtol=1e-12)
    assert shuffled["r_squared"] == pytest.approx(straight["r_squared"], rel=1e-9)


def test_zero_concentration_is_the_least_certain():
    with np.errstate(divide="ignore"):
        uncertainty = 1 / np.array([0.0, 3.0, 2.0, 1.0])
    metrics = uncertainty_metrics(uncertainty, [0, 1, 1, 0], num_bins=2)
    assert metrics["bin_recall"] == [1.0, 0.0]
    assert metrics["bin_uncertainty"] == [pytest.approx(5 / 12), math.inf]
    assert math.isnan(metrics["point_biserial"])


@pytest.mark.parametrize(
    ("uncertainty", "correct"),
    [(np.arange(40), np.ones(40)), (np.arange(40), np.zeros(40)), (np.ones(40), np.arange(40) < 20)],
)
def test_no_trend_without_variation(uncertainty, correct):
    metrics = uncertainty_metrics(uncertainty, correct)
    assert all(math.isnan(metrics[name]) for name in ("spearman", "pearson", "r_squared", "point_biserial"))
    assert sum(metrics["bin_recall"]) * 4 == sum(correct)


@pytest.mark.parametrize(
    ("uncertainty", "correct", "num_bins", "message"),
    [
        (np.arange(9), np.ones(9), 10, "`num_bins` is 10 for 9 queries"),
        (np.arange(9), np.ones(9), 1, "`num_bins` is 1 for 9 queries"),
        ([0.0, np.nan, np.nan], [1, 0, 1], 2, "2 of 3 values of `uncertainty` are NaN"),
        (np.arange(9), np.ones(8), 2, r"`uncertainty` \(9,\), `correct` \(8,\)"),
        (np.ones((3, 3)), np.ones((3, 3)), 2, r"`uncertainty` \(3, 3\)"),
        ([], [], 2, r"`uncertainty` \(0,\)"),
        (np.arange(3), [0, 1, 2], 2, "`correct` contains 2.0; allowed are booleans and prob"),
    ],
)
def test_bad_uncertainty_is_refused(uncertainty, correct, num_bins, message):
    with pytest.raises(ValueError, match=message):
        uncertainty_metrics(uncertainty, correct, num_bins=num_bins)


def test_rank_correlation_matches_scipy_with_ties():
    for seed in range(20):
        generator = np.random.default_rng(seed)
        uncertainty, ambiguity = generator.integers(0, 6, size=(2, 40))
        expected = stats.spearmanr(uncertainty, ambiguity).statistic
        assert rank_correlation(uncertainty, torch.tensor(ambiguity)) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_rank_correlation_at_its_limits():
    ambiguity = np.array([3.0, 1.0, 2.0, 2.0, -np.inf, np.inf])
    assert rank_correlation(np.arctan(ambiguity), ambiguity) == 1
    assert rank_correlation(-ambiguity, ambiguity) == -1
    assert math.isnan(rank_correlation(np.ones(6), ambiguity))
    assert math.isnan(rank_correlation(ambiguity, np.full(6, 0.1)))
    with pytest.raises(ValueError, match="1 of 3 values of `ambiguity` are NaN"):
        rank_correlation([1, 2, 3], [1, 2, np.nan])
    with pytest.raises(ValueError, match=r"`uncertainty` \(3,\), `ambiguity` \(2,\)"):
        rank_correlation([1, 2, 3], [1, 2])
