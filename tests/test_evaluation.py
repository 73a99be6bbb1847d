import math

import numpy as np
import pytest
import torch
from scipy import stats

from modeling_asymvlm.evaluation import (
    RetrievalRanks,
    rank_both_ways,
    rank_correlation,
    recall_at_k,
    retrieval_metrics,
    retrieval_uncertainty_metrics,
    specificity_correlation,
    uncertainty_metrics,
)


def random_case(seed, num_texts=47, num_images=13, distinct=5):
    """Scores of few distinct values, hence many ties; unequal captions an image, some images without any."""
    generator = np.random.default_rng(seed)
    index = generator.integers(0, num_images - 2, size=num_texts)
    scores = generator.integers(0, distinct, size=(num_texts, num_images)) / 4
    return scores, index


def best_first(scores):
    return sorted(range(len(scores)), key=lambda candidate: (-scores[candidate], candidate))


def brute_force_ranks(scores, index):
    num_texts, num_images = scores.shape
    by_text = [best_first(list(scores[text])) for text in range(num_texts)]
    text_rank = [by_text[text].index(index[text]) for text in range(num_texts)]
    queries = [image for image in range(num_images) if image in set(index.tolist())]
    by_image = {image: best_first(list(scores[:, image])) for image in queries}
    image_rank = [min(by_image[image].index(text) for text in np.flatnonzero(index == image)) for image in queries]
    return RetrievalRanks(
        text_to_image_rank=np.array(text_rank),
        text_to_image_top=np.array([order[0] for order in by_text]),
        image_queries=np.array(queries),
        image_to_text_rank=np.array(image_rank),
        image_to_text_top=np.array([by_image[image][0] for image in queries]),
        num_images_without_captions=num_images - len(queries),
    )


def assert_same_ranks(ranks, expected):
    for name in RetrievalRanks.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(ranks, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("distinct", [1, 2, 5, 10**6])
@pytest.mark.parametrize("tile_size", [1, 7, 47, 1024])
def test_ranks_match_sorting_every_row_and_column(distinct, tile_size):
    for seed in range(5):
        scores, index = random_case(seed, distinct=distinct)
        expected = brute_force_ranks(scores, index)
        assert expected.num_images_without_captions >= 2
        assert_same_ranks(rank_both_ways(scores, index, tile_size=tile_size), expected)
        blockwise = rank_both_ways(lambda rows, scores=scores: scores[rows], index, num_images=13, tile_size=tile_size)
        assert_same_ranks(blockwise, expected)


def test_ranks_are_int64():
    ranks = rank_both_ways(*random_case(0))
    arrays = [value for value in vars(ranks).values() if isinstance(value, np.ndarray)]
    assert [array.dtype for array in arrays] == [np.int64] * 5


def test_own_rank_is_the_place_in_a_stable_argsort():
    scores, index = random_case(3)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = rank_both_ways(scores, index)
    np.testing.assert_array_equal(np.take_along_axis(order, ranks.text_to_image_rank[:, None], 1)[:, 0], index)
    np.testing.assert_array_equal(order[:, 0], ranks.text_to_image_top)


def test_infinite_scores_have_a_rank():
    scores, index = random_case(1)
    scores[scores == 0] = -np.inf
    scores[scores == 1] = np.inf
    scores[:, 4] = -np.inf
    scores[5] = -np.inf
    assert_same_ranks(rank_both_ways(scores, index, tile_size=10), brute_force_ranks(scores, index))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_every_float_type(dtype):
    scores, index = random_case(2)
    tensor = torch.tensor(scores, dtype=dtype, requires_grad=True)
    expected = brute_force_ranks(scores, index)
    assert_same_ranks(rank_both_ways(tensor, torch.tensor(index)), expected)
    assert_same_ranks(rank_both_ways(lambda rows: tensor[rows], index, num_images=13, tile_size=9), expected)


def test_nested_lists_and_read_only_arrays():
    scores, index = random_case(4)
    expected = brute_force_ranks(scores, index)
    assert_same_ranks(rank_both_ways(scores.tolist(), index.tolist()), expected)
    scores.flags.writeable = False
    assert_same_ranks(rank_both_ways(scores, index), expected)


def test_each_block_is_scored_at_most_twice():
    scores, index = random_case(0)
    calls = []

    def score(rows):
        calls.append((rows.start, rows.stop))
        return scores[rows]

    rank_both_ways(score, index, num_images=13, tile_size=20)
    assert sorted(calls) == [(0, 20), (0, 20), (20, 40), (20, 40), (40, 47), (40, 47)]


def test_one_text_and_one_image():
    ranks = rank_both_ways([[0.5]], [0])
    assert recall_at_k(ranks, (1,)) == {"text_to_image_recall@1": 1.0, "image_to_text_recall@1": 1.0}


def test_nan_scores_are_counted():
    scores, index = random_case(0)
    scores[3, 4] = scores[40, 0] = scores[46, 12] = np.nan
    with pytest.raises(ValueError, match=r"3 of 611 scores are NaN"):
        rank_both_ways(scores, index, tile_size=10)


def test_scores_that_change_between_calls_are_refused():
    scores, index = random_case(0)
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="other values for rows 0 to 46"):
        rank_both_ways(lambda rows: scores[rows] + generator.normal(size=(47, 13)), index, num_images=13)


@pytest.mark.parametrize(
    ("scores", "index", "options", "message"),
    [
        (np.zeros((3, 2)), [0, 1], {}, r"`scores` has shape \(3, 2\); it must be \(2, images\)"),
        (np.zeros((2, 3)), [0, 1], {"num_images": 4}, r"`scores` has shape \(2, 3\); it must be \(2, 4\)"),
        (np.zeros(2), [0, 1], {}, r"`scores` has shape \(2,\)"),
        (np.zeros((2, 3), int), [0, 1], {}, "dtype int64; they must be floating-point"),
        (np.zeros((2, 3)), [0, 3], {}, "runs from 0 to 3; allowed is 0 to 2"),
        (np.zeros((2, 3)), [-1, 0], {}, "runs from -1 to 0; allowed is 0 to 2"),
        (np.zeros((2, 3)), [0.0, 1.0], {}, "dtype float64; it must be a non-empty vector of integers"),
        (np.zeros((2, 3)), [[0, 1]], {}, r"`text_image_index` has shape \(1, 2\)"),
        (np.zeros((0, 3)), [], {}, r"`text_image_index` has shape \(0,\)"),
        (np.zeros((2, 3)), [0, 1], {"tile_size": 0}, "`tile_size` is 0; it must be at least 1"),
        (lambda rows: np.zeros((2, 3)), [0, 1], {}, "`num_images` is None"),
        (lambda rows: np.zeros((2, 3)), [0, 1], {"num_images": 4}, r"have shape \(2, 3\)"),
        (lambda rows: np.zeros((1, 3)), [0, 1], {"num_images": 3}, r"have shape \(1, 3\)"),
    ],
)
def test_bad_scores_and_indices_are_refused(scores, index, options, message):
    with pytest.raises(ValueError, match=message):
        rank_both_ways(scores, index, **options)


def test_recall_counts_queries_answered_within_k():
    for seed in range(10):
        scores, index = random_case(seed, distinct=50)
        expected = {}
        for k in (1, 2, 5, 10):
            found = [index[text] in best_first(list(scores[text]))[:k] for text in range(47)]
            expected[f"text_to_image_recall@{k}"] = sum(found) / 47
            queries = sorted(set(index.tolist()))
            found = [any(index[text] == image for text in best_first(list(scores[:, image]))[:k]) for image in queries]
            expected[f"image_to_text_recall@{k}"] = sum(found) / len(queries)
        assert retrieval_metrics(scores, index, ks=(1, 2, 5, 10), tile_size=11) == expected
        blockwise = retrieval_metrics(lambda rows, scores=scores: scores[rows], index, ks=(1, 2, 5, 10), num_images=13)
        assert blockwise == expected


def test_recall_names_and_limits():
    ranks = rank_both_ways(*random_case(0))
    names = [f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert list(recall_at_k(ranks)) == names
    assert set(recall_at_k(ranks, (47,)).values()) == {1.0}
    with pytest.raises(ValueError, match=r"`ks` is \(1, 0\)"):
        recall_at_k(ranks, (1, 0))


def brute_force_uncertainty_metrics(uncertainty, correct, num_bins):
    order = sorted(range(len(uncertainty)), key=lambda query: (uncertainty[query], query))
    sizes = [len(order) // num_bins + (level < len(order) % num_bins) for level in range(num_bins)]
    recall, mean = [], []
    for size in sizes:
        members, order = order[:size], order[size:]
        recall.append(sum(bool(correct[query]) for query in members) / size)
        mean.append(math.fsum(uncertainty[query] for query in members) / size)
    level = list(range(num_bins))
    fit = np.polyval(np.polyfit(level, recall, 1), level)
    residual = sum((value - line) ** 2 for value, line in zip(recall, fit, strict=True))
    total = sum((value - sum(recall) / num_bins) ** 2 for value in recall)
    spearman = stats.spearmanr(level, recall).statistic
    r_squared = 1 - residual / total
    return {
        "spearman": spearman,
        "r_squared": r_squared,
        "neg_spearman_r_squared": -spearman * r_squared,
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


def test_zero_concentration_is_the_least_certain():
    with np.errstate(divide="ignore"):
        uncertainty = 1 / np.array([0.0, 3.0, 2.0, 1.0])
    metrics = uncertainty_metrics(uncertainty, [0, 1, 1, 0], num_bins=2)
    assert metrics["bin_recall"] == [1.0, 0.0]
    assert metrics["bin_uncertainty"] == [pytest.approx(5 / 12), math.inf]


@pytest.mark.parametrize(
    ("uncertainty", "correct"),
    [(np.arange(40), np.ones(40)), (np.arange(40), np.zeros(40)), (np.ones(40), np.arange(40) < 20)],
)
def test_no_trend_without_variation(uncertainty, correct):
    metrics = uncertainty_metrics(uncertainty, correct)
    assert all(math.isnan(metrics[name]) for name in ("spearman", "r_squared", "neg_spearman_r_squared"))
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


def test_both_conventions_for_image_queries():
    generator = np.random.default_rng(0)
    scores, index = random_case(0, num_texts=200, num_images=60, distinct=1000)
    scores[np.arange(200), index] += generator.uniform(0, 200, size=200)
    text_uncertainty, image_uncertainty = generator.random(200), generator.random(60)
    metrics = retrieval_uncertainty_metrics(
        rank_both_ways(scores, index), text_uncertainty, image_uncertainty, num_bins=5
    )

    queries = sorted(set(index.tolist()))
    retrieved_caption = [best_first(list(scores[:, image]))[0] for image in queries]
    answered = [index[text] == image for text, image in zip(retrieved_caption, queries, strict=True)]
    found = [best_first(list(scores[text]))[0] == index[text] for text in range(200)]
    assert 0 < sum(answered) < len(queries) and 0 < sum(found) < 200
    expected = {
        "text_to_image": (text_uncertainty, found),
        "image_to_text_by_retrieved_caption": ([text_uncertainty[text] for text in retrieved_caption], answered),
        "image_to_text_by_image": ([image_uncertainty[image] for image in queries], answered),
    }
    assert list(metrics) == list(expected)
    for name, (uncertainty, correct) in expected.items():
        reference = brute_force_uncertainty_metrics(uncertainty, correct, 5)
        assert metrics[name]["bin_recall"] == reference["bin_recall"]
        assert metrics[name]["bin_uncertainty"] == pytest.approx(reference["bin_uncertainty"], rel=1e-12)


def test_image_uncertainty_is_optional_and_shapes_are_checked():
    scores, index = random_case(0)
    ranks = rank_both_ways(scores, index)
    text_uncertainty = np.arange(47)
    assert "image_to_text_by_image" not in retrieval_uncertainty_metrics(ranks, text_uncertainty)
    with pytest.raises(ValueError, match=r"`text_uncertainty` has shape \(13,\); it must be \(47,\)"):
        retrieval_uncertainty_metrics(ranks, np.arange(13))
    with pytest.raises(ValueError, match=r"`image_uncertainty` has shape \(11,\); it must be \(13,\)"):
        retrieval_uncertainty_metrics(ranks, text_uncertainty, np.arange(11))


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


def test_specificity_correlation_matches_brute_force():
    for seed in range(10):
        generator = np.random.default_rng(seed)
        group = np.repeat(np.arange(30), 5)
        level = np.tile([0, 1, 1, 2, 3], 30)
        concentration = level + generator.uniform(0, 1.5, size=150).round(1)
        concentration[group == 7] = 2.5
        shuffle = generator.permutation(150)
        group, level, concentration = group[shuffle], level[shuffle], concentration[shuffle]

        correlations, ordered = [], 0
        for name in range(30):
            members = [caption for caption in range(150) if group[caption] == name]
            if name != 7:
                correlations.append(stats.spearmanr(concentration[members], level[members]).statistic)
            ordered += all(
                concentration[specific] > concentration[general]
                for specific in members
                for general in members
                if level[specific] > level[general]
            )
        assert 0 < ordered < 30
        names = np.array([f"hierarchy {value}" for value in group])
        for labels in (group, names, torch.tensor(group)):
            metrics = specificity_correlation(concentration, level, labels)
            assert metrics["mean_group_spearman"] == pytest.approx(np.mean(correlations), rel=1e-12)
            assert metrics["ordered_share"] == ordered / 30
            overall = stats.spearmanr(concentration, level).statistic
            assert metrics["overall_spearman"] == pytest.approx(overall, rel=1e-12)
            assert (metrics["num_groups"], metrics["num_constant_groups"]) == (30, 1)


def test_specificity_at_its_limits():
    level, group = [0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1]
    perfect = specificity_correlation([1, 2, 3, 7, 8, 9], level, group)
    assert perfect["mean_group_spearman"] == perfect["ordered_share"] == 1
    reverse = specificity_correlation([3, 2, 1, 9, 8, 7], level, group)
    assert (reverse["mean_group_spearman"], reverse["ordered_share"]) == (-1, 0)
    constant = specificity_correlation(np.ones(6), level, group)
    assert math.isnan(constant["mean_group_spearman"]) and math.isnan(constant["overall_spearman"])
    assert (constant["ordered_share"], constant["num_constant_groups"]) == (0, 2)
    tied = specificity_correlation([1, 2, 2, 1, 2, 3], level, group)
    assert tied["ordered_share"] == 0.5


def test_bad_hierarchies_are_refused():
    with pytest.raises(ValueError, match=r"every caption of group .*4.* has level 1"):
        specificity_correlation([1, 2, 3, 4], [0, 1, 1, 1], [3, 3, 4, 4])
    with pytest.raises(ValueError, match=r"`group` has shape \(3,\); it must be \(4,\)"):
        specificity_correlation([1, 2, 3, 4], [0, 1, 0, 1], [3, 3, 4])
    with pytest.raises(ValueError, match="1 of 2 values of `level` are NaN"):
        specificity_correlation([1, 2], [0, np.nan], [3, 3])
