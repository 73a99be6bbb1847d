"""Bootstrap intervals against the exact distribution of all resamples, and means over seeds."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from modeling_asymvlm.evaluation import (
    auroc_difference_interval,
    bootstrap_intervals,
    confidence_intervals,
    confidence_metrics,
    mean_over_seeds,
    selective_metrics,
)


def test_intervals_are_quantiles_of_all_resamples_of_whole_clusters():
    values, clusters = np.array([0.0, 1.0, 5.0, 2.0, 9.0, 4.0]), np.array(["a", "a", "b", "c", "c", "c"])
    means = []
    for drawn in itertools.product("abc", repeat=3):
        means.append(np.concatenate([values[clusters == name] for name in drawn]).mean())
    low, high = bootstrap_intervals(np.mean, values, clusters=clusters, num_resamples=20000, confidence_level=0.8)
    # The quantiles of 20,000 draws are those of the 27 equally likely resamples, which are some way apart.
    assert low == pytest.approx(np.quantile(means, 0.1, method="inverted_cdf"), abs=1e-9)
    assert high == pytest.approx(np.quantile(means, 0.9, method="inverted_cdf"), abs=1e-9)


def test_intervals_of_single_queries_are_those_of_scipy():
    values = np.random.default_rng(0).exponential(size=80)
    low, high = bootstrap_intervals(np.median, values, num_resamples=8000, seed=1)
    expected = stats.bootstrap((values,), np.median, n_resamples=8000, method="percentile", rng=2).confidence_interval
    spread = expected.high - expected.low
    assert (low, high) == (pytest.approx(expected.low, abs=spread / 10), pytest.approx(expected.high, abs=spread / 10))


def test_dependent_captions_widen_the_interval():
    generator = np.random.default_rng(0)
    of_image = generator.random(100)
    values = np.repeat(of_image, 5)
    clusters = np.repeat(np.arange(100), 5)
    together = np.diff(bootstrap_intervals(np.mean, values, clusters=clusters))[0]
    alone = np.diff(bootstrap_intervals(np.mean, values))[0]
    assert together == pytest.approx(alone * math.sqrt(5), rel=0.15)
    assert together == pytest.approx(2 * 1.96 * of_image.std() / 10, rel=0.1)


def test_several_statistics_at_once_with_a_seed():
    values, other = np.random.default_rng(0).random((2, 30))

    def statistic(a, b):
        return {"mean": a.mean(), "both": (a * b).mean()}

    intervals = bootstrap_intervals(statistic, values, other, num_resamples=50)
    assert list(intervals) == ["mean", "both"]
    assert intervals["mean"] == bootstrap_intervals(np.mean, values, num_resamples=50)
    assert intervals == bootstrap_intervals(statistic, values, other, num_resamples=50)
    assert intervals != bootstrap_intervals(statistic, values, other, num_resamples=50, seed=1)


@pytest.mark.parametrize("distinct", [3, 15, 10**6])
@pytest.mark.parametrize("by_image", [True, False])
def test_the_quick_intervals_are_those_of_the_whole_metrics(distinct, by_image):
    for seed in range(3):
        generator = np.random.default_rng(seed)
        uncertainty = generator.integers(0, distinct, size=120)
        correct = generator.random(120) > uncertainty / distinct
        clusters = generator.integers(0, 40, size=120) if by_image else None
        names = ("spearman", "aurc", "auroc")

        def statistic(uncertainty, correct, names=names):
            metrics = confidence_metrics(uncertainty, correct, num_bins=6)
            return {name: metrics[name] for name in names}

        expected = bootstrap_intervals(statistic, uncertainty, correct, clusters=clusters, num_resamples=60)
        quick = confidence_intervals(uncertainty, correct, clusters=clusters, num_bins=6, num_resamples=60)
        for name in names:
            assert quick[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


def test_the_trend_is_left_out_without_bins():
    generator = np.random.default_rng(0)
    uncertainty, correct = generator.normal(size=50), generator.random(50) < 0.5
    whole = confidence_intervals(uncertainty, correct, num_resamples=20)
    assert confidence_intervals(uncertainty, correct, num_bins=None, num_resamples=20) == {
        name: whole[name] for name in ("aurc", "auroc")
    }


@pytest.mark.parametrize("distinct", [3, 10**6])
def test_the_quick_difference_is_that_of_the_whole_metrics(distinct):
    for seed in range(3):
        generator = np.random.default_rng(seed)
        confidences = generator.integers(0, distinct, size=(2, 120)).astype(float)
        correct = generator.random((2, 120)) < confidences / distinct
        clusters = generator.integers(0, 40, size=120)

        def difference(one, own, other, others):
            return selective_metrics(-one, own)["auroc"] - selective_metrics(-other, others)["auroc"]

        arrays = confidences[0], correct[0], confidences[1], correct[1]
        expected = bootstrap_intervals(difference, *arrays, clusters=clusters, num_resamples=60)
        quick = auroc_difference_interval(tuple(confidences), tuple(correct), clusters=clusters, num_resamples=60)
        assert quick == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_statistics_without_an_answer():
    alike = confidence_intervals(np.arange(20), np.ones(20), num_resamples=20)
    assert all(math.isnan(end) for end in alike["auroc"] + alike["spearman"]) and alike["aurc"] == [0, 0]
    equal = confidence_intervals(np.ones(20), np.arange(20) < 9, num_resamples=20)
    assert all(math.isnan(end) for end in equal["spearman"]) and equal["auroc"] == [0.5, 0.5]
    some = iter([1.0, math.nan, 3.0])
    assert bootstrap_intervals(lambda x: next(some), [1, 2], num_resamples=3, confidence_level=0.5) == [1.5, 2.5]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"have lengths \[3, 2\]"):
        bootstrap_intervals(np.mean, [1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"have lengths \[3\] and \(2,\)"):
        bootstrap_intervals(np.mean, [1, 2, 3], clusters=[1, 2])
    with pytest.raises(ValueError, match=r"have lengths \[\]"):
        bootstrap_intervals(np.mean)
    with pytest.raises(ValueError, match="`num_resamples` is 0"):
        bootstrap_intervals(np.mean, [1, 2], num_resamples=0)
    with pytest.raises(ValueError, match="`confidence_level` 95"):
        confidence_intervals([1, 2], [1, 0], confidence_level=95)
    with pytest.raises(ValueError, match="`num_bins` is 3 for 2 clusters"):
        confidence_intervals([1, 2, 3, 4], [1, 0, 1, 0], clusters=[0, 0, 1, 1], num_bins=3)


def test_means_over_seeds_keep_the_form():
    runs = [
        {"recall": 0.1, "bins": [1.0, 2.0], "nested": {"s": -1.0}, "name": "a", "curve": [[1, 2]]},
        {"recall": 0.3, "bins": [3.0, 2.0], "nested": {"s": math.nan}, "name": "b", "curve": [[1, 4]]},
    ]
    summary = mean_over_seeds(runs)
    assert list(summary) == ["recall", "bins", "nested"]
    assert summary["recall"] == {
        "mean": pytest.approx(0.2),
        "standard_deviation": pytest.approx(np.std([0.1, 0.3], ddof=1)),
        "num_seeds": 2,
    }
    assert [place["mean"] for place in summary["bins"]] == [2, 2]
    assert math.isnan(summary["nested"]["s"]["mean"])
    assert math.isnan(mean_over_seeds(runs[:1])["recall"]["standard_deviation"])
    with pytest.raises(ValueError, match="at least one run, all of the same form"):
        mean_over_seeds([{"a": 1}, {"b": 1}])
    with pytest.raises(ValueError, match="at least one run"):
        mean_over_seeds([])
