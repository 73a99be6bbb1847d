"""First results both ways, R-Precision and mAP@R, against sorting, scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from modeling_asymvlm.evaluation import EmbeddingScores, many_to_many_metrics, rank_both_ways, top_k_both_ways
from tests.support.retrieval_cases import best_first, random_case


@pytest.mark.parametrize("distinct", [1, 3, 10**6])
@pytest.mark.parametrize("k", [1, 4, 13, 60])
def test_first_results_are_those_of_a_stable_sort(distinct, k):
    for seed in range(4):
        scores, _ = random_case(seed, distinct=distinct)
        if distinct == 3:
            scores[scores == 0] = -np.inf
        by_text = [best_first(list(row))[:k] for row in scores]
        by_image = [best_first(list(column))[:k] for column in scores.T]
        for given, sizes in ((scores, {}), (lambda rows, s=scores: s[rows], {"num_texts": 47, "num_images": 13})):
            for tile_size in (None, 5):
                top = top_k_both_ways(given, k, tile_size=tile_size, **sizes)
                np.testing.assert_array_equal(top.text_to_image, by_text)
                np.testing.assert_array_equal(top.image_to_text, by_image)


def test_many_blocks_of_embeddings():
    generator = torch.Generator().manual_seed(0)
    texts, images = (torch.randn(size, 6, generator=generator).round() for size in (2000, 300))
    top = top_k_both_ways(EmbeddingScores(texts, images), 7)
    scores = texts @ images.T
    np.testing.assert_array_equal(top.text_to_image, scores.argsort(dim=1, descending=True, stable=True)[:, :7])
    np.testing.assert_array_equal(top.image_to_text, scores.T.argsort(dim=1, descending=True, stable=True)[:, :7])


def brute_force(top, positives, ks):
    r_precision, map_at_r = [], []
    for row, answers in zip(top, positives, strict=True):
        wanted, count = set(answers), len(set(answers))
        r_precision.append(sum(item in wanted for item in row[:count]) / count)
        precisions = [
            sum(item in wanted for item in row[: place + 1]) / (place + 1)
            for place in range(count)
            if row[place] in wanted
        ]
        map_at_r.append(sum(precisions) / count)
    recall = {
        f"recall@{k}": np.mean([bool(set(row[:k]) & set(a)) for row, a in zip(top, positives, strict=True)])
        for k in ks
    }
    return recall | {"r_precision": np.mean(r_precision), "map_at_r": np.mean(map_at_r), "num_queries": len(top)}


def test_metrics_with_any_number_of_right_answers():
    for seed in range(10):
        generator = np.random.default_rng(seed)
        top = np.array([generator.permutation(30)[:12] for _ in range(25)])
        positives = [generator.integers(0, 30, size=generator.integers(1, 13)).tolist() for _ in range(25)]
        metrics = many_to_many_metrics(torch.tensor(top), positives, ks=(1, 3, 12))
        assert metrics == pytest.approx(brute_force(top.tolist(), positives, (1, 3, 12)), rel=1e-12)


def test_a_ranking_with_all_answers_first_is_perfect_and_map_is_average_precision_there():
    top = [[3, 1, 2, 0], [0, 2, 1, 3]]
    perfect = many_to_many_metrics(top, [[1, 3], [0]], ks=(1,))
    assert (perfect["recall@1"], perfect["r_precision"], perfect["map_at_r"]) == (1, 1, 1)
    # Of R results all that are right stand in front: average precision over the first R, times their share.
    partly = many_to_many_metrics([[3, 1, 2, 0]], [[3, 1, 0]], ks=(1,))
    within = average_precision_score([1, 1, 0], [3, 2, 1])
    assert partly["map_at_r"] == pytest.approx(within * 2 / 3)


def test_with_one_right_answer_each_it_is_recall_at_1():
    scores, index = random_case(5, distinct=50)
    top = top_k_both_ways(scores, 10)
    metrics = many_to_many_metrics(top.text_to_image, [[image] for image in index])
    recall = float(np.mean(rank_both_ways(scores, index).text_to_image_rank == 0))
    assert metrics["recall@1"] == metrics["r_precision"] == metrics["map_at_r"] == recall


def test_bad_arguments_are_refused():
    top = [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="query 1 has no right answer"):
        many_to_many_metrics(top, [[0], []], ks=(1,))
    with pytest.raises(ValueError, match="`top` has 2 results of each query; 3 are needed"):
        many_to_many_metrics(top, [[0, 1, 2], [0]], ks=(1,))
    with pytest.raises(ValueError, match="2 results of each query; 5 are needed"):
        many_to_many_metrics(top, [[0], [0]], ks=(5,))
    with pytest.raises(ValueError, match=r"shape \(2, 2\) and dtype int64 for 1 lists"):
        many_to_many_metrics(top, [[0]], ks=(1,))
    with pytest.raises(ValueError, match="it must hold integers"):
        many_to_many_metrics(np.zeros((1, 2)), [[0]], ks=(1,))
    with pytest.raises(ValueError, match=r"`ks` is \(0,\)"):
        top_k_both_ways(np.zeros((2, 2)), 0)
    with pytest.raises(ValueError, match="rows 0 to 1 are NaN"):
        top_k_both_ways(np.full((2, 2), np.nan), 1)
    with pytest.raises(ValueError, match="`num_texts` is None"):
        top_k_both_ways(lambda rows: np.zeros((2, 2)), 1, num_images=2)
