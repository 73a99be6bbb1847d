"""Coverage and error rates are those that were promised, by simulation against their exact laws."""

import math

import numpy as np
import pytest
from scipy import stats

from modeling_asymvlm.calibration.conformal import NUM_THRESHOLDS, ConformalSets, SelectiveAnswers


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("num_calibration", [19, 50, 333])
def test_coverage_of_uniform_conformity_follows_the_exact_beta_law(alpha, num_calibration):
    # A later query of uniform conformity is covered with probability 1 - threshold, whose law is known.
    generator = np.random.default_rng(num_calibration)
    draws = generator.random((2000, num_calibration))
    coverages = [1 - ConformalSets.calibrate(draw, alpha).thresholds[0] for draw in draws]
    rank = math.ceil(round((1 - alpha) * (num_calibration + 1), 9))
    law = stats.beta(rank, num_calibration + 1 - rank)
    assert stats.kstest(coverages, law.cdf).pvalue > 1e-3
    assert law.mean() >= 1 - alpha


@pytest.mark.parametrize("num_calibration", [9, 10, 18, 19, 29])
def test_the_threshold_is_the_order_statistic_that_covers_enough_and_no_more(num_calibration):
    conformity = np.random.default_rng(0).permutation(num_calibration) / 7
    threshold = ConformalSets.calibrate(conformity, 0.1).thresholds[0]
    covered = np.count_nonzero(conformity >= threshold)
    assert covered >= 0.9 * (num_calibration + 1) - 1e-9 > covered - 1


def test_strata_are_covered_each_on_its_own_where_the_marginal_set_fails_one():
    generator = np.random.default_rng(1)

    def draw(size):
        uncertainty = generator.random(size)
        return generator.normal(size=size) - 3 * (uncertainty > 0.7), uncertainty  # vague queries conform less

    calibration, later = draw(4000), draw(40_000)
    marginal = ConformalSets.calibrate(calibration[0], 0.1)
    by_stratum = ConformalSets.calibrate(calibration[0], 0.1, uncertainty=calibration[1], edges=[0.3, 0.7])
    assert by_stratum.num_calibration.sum() == 4000
    strata = np.digitize(later[1], [0.3, 0.7])

    def coverage(thresholds):
        hits = later[0] >= thresholds
        return np.array([hits[strata == stratum].mean() for stratum in range(3)])

    deviations = [stats.beta(0.9 * n, 0.1 * n).std() for n in by_stratum.num_calibration]
    assert (abs(coverage(by_stratum.thresholds[strata]) - 0.9) < 5 * np.array(deviations)).all()
    assert coverage(marginal.thresholds[0])[2] < 0.75  # so that the strata are not idle
    assert abs((later[0] >= marginal.thresholds[0]).mean() - 0.9) < 0.03


def test_groups_keep_the_promise_that_dependent_queries_break():
    generator = np.random.default_rng(2)
    grouped, naive, num_groups = [], [], 19
    for _ in range(1500):
        sizes = generator.integers(1, 12, num_groups)
        groups = np.repeat(np.arange(num_groups), sizes)
        conformity = generator.normal(size=num_groups)[groups]  # the captions of one image are all alike
        later = generator.normal()
        grouped.append(later >= ConformalSets.calibrate(conformity, 0.05, groups=groups).thresholds[0])
        naive.append(later >= ConformalSets.calibrate(conformity, 0.05).thresholds[0])
    lowest = stats.binom(1500, 0.95).ppf(1e-3) / 1500
    assert np.mean(grouped) >= lowest > np.mean(naive)


def test_single_groups_of_any_name_change_nothing():
    conformity = np.random.default_rng(3).normal(size=50)
    names = [f"image {number}" for number in range(50)]
    plain, named = ConformalSets.calibrate(conformity, 0.1), ConformalSets.calibrate(conformity, 0.1, groups=names)
    assert plain.thresholds == named.thresholds


def test_sizes_count_the_leading_results_and_abstain_where_the_list_ends_too_soon():
    sets = ConformalSets(0.1, np.array([0.5, 0.1]), np.array([2.0]), np.array([99, 99]))
    conformity = [[0.9, 0.5, 0.4], [0.9, 0.8, 0.7], [0.4, 0.3, 0.2], [0.4, 0.3, 0.2]]
    sizes, abstained = sets.sizes(conformity, [1.0, 1.0, 1.0, 2.0], gallery_size=10)
    assert sizes.tolist() == [2, 3, 0, 3] and abstained.tolist() == [False, True, False, True]
    assert not sets.sizes(conformity, [1.0, 1.0, 1.0, 2.0], gallery_size=3)[1].any()  # the list is the gallery


def test_selective_answers_err_no_more_often_than_promised():
    generator = np.random.default_rng(4)
    broken, answered = 0, []
    for seed in range(400):
        confidence = generator.random(400)
        chosen = SelectiveAnswers.calibrate(
            confidence, generator.random(400) < confidence, target_error=0.2, error_probability=0.1, seed=seed
        )
        # Confidence is the true probability of a right answer: above a threshold t the error rate is (1 - t)/2.
        true_error = (1 - min(chosen.threshold, 1)) / 2
        broken += true_error > 0.2
        answered.append(chosen.num_answered)
        assert chosen.num_wrong <= 0.2 * max(chosen.num_answered, 1)
        assert chosen.answers([chosen.threshold, 2.0]).tolist() == [False, chosen.threshold < 2]
    assert broken <= stats.binom(400, 0.1).ppf(0.999)
    assert np.median(answered) > 50  # of 160 that a perfect choice would answer


def test_hopeless_queries_are_never_answered_and_certain_ones_always():
    confidence = np.random.default_rng(5).random(200)
    never = SelectiveAnswers.calibrate(confidence, np.zeros(200), target_error=0.1)
    always = SelectiveAnswers.calibrate(confidence, np.ones(200), target_error=0.1)
    assert not never.answers(confidence).any() and always.answers(confidence).sum() == 199


def test_one_query_of_each_group_is_used_for_answers():
    groups = np.repeat(np.arange(120), 5)
    right = np.repeat(np.arange(120) % 40 != 0, 5)
    confidence = np.random.default_rng(6).random(600)
    chosen = SelectiveAnswers.calibrate(confidence, right, target_error=0.3, groups=groups)
    assert 100 < chosen.num_answered < 120 and chosen.num_wrong <= 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConformalSets.calibrate(np.ones(18), 0.05), "18 independent calibration queries .* at least 19"),
        (lambda: ConformalSets.calibrate(np.ones(8), 0.1), "at least 9"),
        (lambda: ConformalSets.calibrate(np.ones(99), 0.05, groups=np.arange(99) // 6), "17 independent"),
        (
            lambda: ConformalSets.calibrate(np.ones(30), 0.1, uncertainty=np.arange(30), edges=[25]),
            "5 independent calibration queries in stratum 1",
        ),
        (lambda: ConformalSets.calibrate([0.1, np.nan], 0.5), "conformity is NaN for 1 queries"),
        (lambda: ConformalSets.calibrate([], 0.5), "not be empty"),
        (lambda: ConformalSets.calibrate(np.ones(30), 1.0), "alpha is 1.0"),
        (lambda: ConformalSets.calibrate(np.ones(30), 0.1, edges=[1]), "pass the uncertainty"),
        (lambda: ConformalSets.calibrate(np.ones(30), 0.1, uncertainty=np.ones(30), edges=[2, 1]), "ascend"),
        (lambda: ConformalSets.calibrate(np.ones(30), 0.1, uncertainty=np.ones(3), edges=[2]), r"shape \(30,\)"),
        (lambda: ConformalSets.calibrate(np.ones(30), 0.1, groups=np.ones(3)), r"groups must have shape \(30,\)"),
        (
            lambda: ConformalSets.calibrate(np.ones(30), 0.1).sizes(np.ones(3), gallery_size=3),
            r"shape \(queries, k\)",
        ),
        (lambda: SelectiveAnswers.calibrate(np.ones(9), np.ones(9), target_error=0.1), "9 independent .* at least 58"),
        (lambda: SelectiveAnswers.calibrate(np.ones(9), np.ones(8), target_error=0.1), "9 booleans"),
        (lambda: SelectiveAnswers.calibrate(np.ones(9), np.full(9, 2), target_error=0.1), "booleans"),
        (lambda: SelectiveAnswers.calibrate(np.ones(9), np.ones(9), target_error=0), "target_error is 0"),
    ],
)
def test_bad_input_is_refused_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_needed_number_of_queries_for_answers_is_the_least_that_can_pass():
    needed = math.ceil(math.log(0.05 / NUM_THRESHOLDS) / math.log(0.9)) + 1
    confidence = np.random.default_rng(7).random(needed)
    assert SelectiveAnswers.calibrate(confidence, np.ones(needed), target_error=0.1).num_answered == needed - 1
    with pytest.raises(ValueError, match=f"at least {needed} are needed"):
        SelectiveAnswers.calibrate(confidence[:-1], np.ones(needed - 1), target_error=0.1)
