"""Both directions, conventions and roles of a confidence, put together by hand; and the distance to an oracle."""

import numpy as np
import pytest

from modeling_asymvlm.evaluation import (
    calibration_metrics,
    oracle_metrics,
    posterior_metrics,
    rank_both_ways,
    retrieval_posterior,
    retrieval_uncertainty_metrics,
    selective_metrics,
    uncertainty_metrics,
)
from tests.support.retrieval_cases import best_first, random_case


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
        assert metrics[name] == {
            **uncertainty_metrics(uncertainty, correct, num_bins=5),
            **selective_metrics(uncertainty, correct),
        }


def test_image_uncertainty_is_optional_and_shapes_are_checked():
    scores, index = random_case(0)
    ranks = rank_both_ways(scores, index)
    text_uncertainty = np.arange(47)
    assert "image_to_text_by_image" not in retrieval_uncertainty_metrics(ranks, text_uncertainty)
    with pytest.raises(ValueError, match=r"`text_uncertainty` has shape \(13,\); it must be \(47,\)"):
        retrieval_uncertainty_metrics(ranks, np.arange(13))
    with pytest.raises(ValueError, match=r"`image_uncertainty` has shape \(11,\); it must be \(13,\)"):
        retrieval_uncertainty_metrics(ranks, text_uncertainty, np.arange(11))


def test_the_posterior_as_a_confidence_in_both_directions():
    generator = np.random.default_rng(0)
    scores, index = random_case(0, num_texts=200, num_images=60, distinct=1000)
    scores[np.arange(200), index] += generator.uniform(0, 200, size=200)
    ranks = rank_both_ways(scores, index)
    posterior = retrieval_posterior(scores, index, logit_scale=0.02)
    metrics = posterior_metrics(posterior, ranks, num_bins=5)
    assert list(metrics) == ["text_to_image", "image_to_text"]
    for direction, of_queries, rank in (
        ("text_to_image", posterior.text_to_image, ranks.text_to_image_rank),
        ("image_to_text", posterior.image_to_text, ranks.image_to_text_rank),
    ):
        confidence, correct = of_queries.top_probability, rank == 0
        assert 0 < correct.mean() < 1
        assert metrics[direction] == {
            **uncertainty_metrics(1 - confidence, correct, num_bins=5),
            **selective_metrics(1 - confidence, correct),
            "negative_log_likelihood": -of_queries.own_log_probability.mean(),
            "calibration": calibration_metrics(confidence, correct, num_bins=5, strategy="quantile"),
        }


def test_the_oracle_has_no_gap_and_others_have_one():
    generator = np.random.default_rng(0)
    by_text = generator.dirichlet(np.ones(12), size=12)
    by_image = generator.dirichlet(np.ones(12), size=12).T
    best = rank_both_ways(by_text, np.arange(12))
    metrics = oracle_metrics(best, by_text, by_image)
    assert metrics["text_to_image_oracle_gap"] == 0 and metrics["text_to_image_oracle_share"] == 1
    assert metrics["text_to_image_best_recall@1"] == pytest.approx(by_text.max(axis=1).mean())
    assert oracle_metrics(rank_both_ways(by_image, np.arange(12)), by_text, by_image)["image_to_text_oracle_gap"] == 0
    ranks = rank_both_ways(generator.random((12, 12)), np.arange(12))
    metrics = oracle_metrics(ranks, by_text, by_image)
    for direction, expected in (
        ("text_to_image", [by_text[text, ranks.text_to_image_top[text]] for text in range(12)]),
        ("image_to_text", [by_image[ranks.image_to_text_top[image], image] for image in range(12)]),
    ):
        recall, possible = metrics[f"{direction}_expected_recall@1"], metrics[f"{direction}_best_recall@1"]
        assert recall == pytest.approx(np.mean(expected)) and recall < possible
        assert metrics[f"{direction}_oracle_gap"] == pytest.approx(possible - recall)
        assert metrics[f"{direction}_oracle_share"] == pytest.approx(recall / possible)


def test_bad_probabilities_of_pairs_are_refused():
    ranks = rank_both_ways(np.eye(3), np.arange(3))
    with pytest.raises(ValueError, match=r"`text_to_image_probability` has shape \(2, 3\)"):
        oracle_metrics(ranks, np.eye(3)[:2], np.eye(3))
    with pytest.raises(ValueError, match="`image_to_text_probability` contains 2"):
        oracle_metrics(ranks, np.eye(3), 2 * np.eye(3))
    with pytest.raises(ValueError, match="and 9 NaN"):
        oracle_metrics(ranks, np.full((3, 3), np.nan), np.eye(3))
