"""The figures of a method on the test split: every confidence in both roles, with the metrics of the package.

*The text alone*: an uncertainty that needs no gallery; how ambiguous is the text? *Given the gallery*: a confidence of
the first result; is it right? Both are judged by whether the first result is the query's own counterpart.
"""

from typing import Any

import numpy as np
import torch

from modeling_asymvlm.evaluation import (
    QueryPosteriors,
    RetrievalRanks,
    bootstrap_intervals,
    confidence_intervals,
    confidence_metrics,
    fit_logit_scale,
    graded,
    median_rank,
    oracle_metrics,
    posterior_metrics,
    rank_both_ways,
    rank_correlation,
    recall_at_k,
    retrieval_posterior,
    retrieval_uncertainty_metrics,
    risk_coverage_curve,
    selective_metrics,
    specificity_correlation,
)
from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .protocol import TRUE_AMBIGUITY, Predictions


NUM_BINS = 10
NUM_RESAMPLES = 1000
CURVE_POINTS = 200
DIRECTIONS = ("text_to_image", "image_to_text")
FITTED_POSTERIOR = "posterior, fitted scale"

# Probability of each pair to belong together, text->image and image->text, where the data tell it.
Oracle = tuple[np.ndarray, np.ndarray]


def judge(
    validation: Predictions,
    test: Predictions,
    validation_split: EmbeddingSplit,
    test_split: EmbeddingSplit,
    oracle: Oracle | None = None,
) -> dict[str, Any]:
    """
    All figures of a method as JSON-ready numbers. The scale of the posterior is fitted on the validation split, for
    each direction by itself; of several uncertainties of a text, that of the lowest AURC there is the `headline`.

    Returns:
        `retrieval`; `headline`; `text_alone` and `given_gallery`, by confidence and direction; `scales`;
        `rank_correlation` of each confidence with the true ambiguity and `specificity` with the captions' levels,
        where known; `curves` of risk and coverage, text->image; `intervals`, of 95 % by bootstrap over images;
        `oracle` where there is one: the figures expected over the pairings that the world allows, which leave out the
        luck of the draw, and those of the true posterior; and `concentration`, one a caption, where there is one.
    """
    index = test_split.text_image_index
    ranks = rank_both_ways(test.scores, index)
    text_alone = {
        name: _text_alone(ranks, test.text_uncertainty.get(name), test.image_uncertainty.get(name))
        for name in dict.fromkeys([*test.text_uncertainty, *test.image_uncertainty])
    }
    scales = {
        direction: fit_logit_scale(validation.scores, validation_split.text_image_index, direction=direction)
        for direction in DIRECTIONS
    }
    given_gallery, per_text = _given_gallery(ranks, test, index, scales)
    record = {
        "retrieval": {**recall_at_k(ranks), **median_rank(ranks)},
        "headline": _headline(validation, validation_split),
        "text_alone": text_alone,
        "given_gallery": given_gallery,
        "scales": {**scales, "own": test.logit_scale},
        "intervals": _intervals(ranks, test, per_text[FITTED_POSTERIOR], index),
    }
    hit = ranks.text_to_image_rank == 0
    of_text = {**test.text_uncertainty, **per_text}
    record["curves"] = {name: _curve(values, hit) for name, values in of_text.items()}
    if "ambiguity" in test_split.columns:
        ambiguity = test_split.columns["ambiguity"]
        record["rank_correlation"] = {name: rank_correlation(values, ambiguity) for name, values in of_text.items()}
    if "level" in test_split.columns:
        level, group = test_split.columns["level"], np.asarray(index)
        kept = graded(level, group)
        if kept.any():
            record["specificity"] = {
                name: specificity_correlation(-np.asarray(values)[kept], level[kept], group[kept])
                for name, values in of_text.items()
            }
    if test.concentration is not None:
        record["concentration"] = _rounded(test.concentration)
    if oracle is not None:
        record["oracle"] = {
            **oracle_metrics(ranks, *oracle),
            "expected": {name: _expected(ranks, values, oracle) for name, values in of_text.items()},
            "true_posterior": _expected_of_oracle(oracle),
        }
    return record


def _headline(validation: Predictions, split: EmbeddingSplit) -> str | None:
    hit = rank_both_ways(validation.scores, split.text_image_index).text_to_image_rank == 0
    aurc = {
        name: selective_metrics(values, hit)["aurc"]
        for name, values in validation.text_uncertainty.items()
        if name != TRUE_AMBIGUITY
    }
    return min(aurc, key=aurc.__getitem__, default=None)


def _text_alone(ranks: RetrievalRanks, text: Any, image: Any) -> dict[str, Any]:
    if text is not None:
        return retrieval_uncertainty_metrics(ranks, text, image, num_bins=NUM_BINS)
    image = np.asarray(image)
    by_image = ranks.image_to_text_rank == 0
    return {  # as the conventions of a method whose texts alone are uncertain, with the sides exchanged
        "text_to_image_by_retrieved_image": confidence_metrics(
            image[ranks.text_to_image_top], ranks.text_to_image_rank == 0, num_bins=NUM_BINS
        ),
        "image_to_text_by_image": confidence_metrics(image[ranks.image_queries], by_image, num_bins=NUM_BINS),
    }


def _given_gallery(
    ranks: RetrievalRanks, test: Predictions, index: torch.Tensor, scales: dict[str, float]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metrics by confidence and direction, and the uncertainty of each text by every confidence."""
    correct = {"text_to_image": ranks.text_to_image_rank == 0, "image_to_text": ranks.image_to_text_rank == 0}
    metrics: dict[str, Any] = {}
    per_text: dict[str, np.ndarray] = {}

    def add(name: str, direction: str, uncertainty: np.ndarray) -> None:
        judged = confidence_metrics(uncertainty, correct[direction], num_bins=NUM_BINS)
        metrics.setdefault(name, {})[direction] = judged
        if direction == "text_to_image":
            per_text[name] = uncertainty

    for direction in DIRECTIONS:
        for kind, scale in (("fitted", scales[direction]), ("own", test.logit_scale)):
            if scale is None:
                continue
            posterior = retrieval_posterior(test.scores, index, logit_scale=scale)
            of_queries: QueryPosteriors = getattr(posterior, direction)
            name = f"posterior, {kind} scale"
            metrics.setdefault(name, {})[direction] = posterior_metrics(posterior, ranks, num_bins=NUM_BINS)[direction]
            if direction == "text_to_image":
                per_text[name] = 1 - of_queries.top_probability
            add(f"entropy, {kind} scale", direction, of_queries.entropy)
            if kind == "fitted":
                add("top-1 score", direction, -of_queries.top_score)
                add("top-1/top-2 margin", direction, -of_queries.score_margin)
    return metrics, per_text


def _intervals(
    ranks: RetrievalRanks, test: Predictions, posterior: np.ndarray, index: torch.Tensor
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Bootstrap over images of what the tables show: by confidence, convention and figure."""
    images = np.asarray(index)
    hit, answered = ranks.text_to_image_rank == 0, ranks.image_to_text_rank == 0
    intervals: dict[str, Any] = {
        "R@1": {
            "text_to_image": _recall_interval(hit, images),
            "image_to_text": _recall_interval(answered, None),
        },
        FITTED_POSTERIOR: {"text_to_image": _confidence_intervals(posterior, hit, images)},
    }
    for name, values in test.text_uncertainty.items():
        text = np.asarray(values)
        intervals[name] = {
            "text_to_image": _confidence_intervals(text, hit, images),
            "image_to_text_by_retrieved_caption": _confidence_intervals(text[ranks.image_to_text_top], answered, None),
        }
    for name, values in test.image_uncertainty.items():
        own = np.asarray(values)[ranks.image_queries]
        intervals.setdefault(name, {})["image_to_text_by_image"] = _confidence_intervals(own, answered, None)
    return intervals


def _recall_interval(hit: np.ndarray, clusters: np.ndarray | None) -> dict[str, list[float]]:
    return {"recall": bootstrap_intervals(np.mean, hit, clusters=clusters, num_resamples=NUM_RESAMPLES)}


def _confidence_intervals(
    uncertainty: np.ndarray, correct: np.ndarray, clusters: np.ndarray | None
) -> dict[str, list[float]]:
    options = {"clusters": clusters, "num_bins": NUM_BINS, "num_resamples": NUM_RESAMPLES}
    return confidence_intervals(uncertainty, correct, **options)  # type: ignore[arg-type]


def _curve(uncertainty: Any, correct: np.ndarray) -> dict[str, list[float]]:
    curve = risk_coverage_curve(uncertainty, correct, max_points=CURVE_POINTS)
    return {name: _rounded(curve[name]) for name in ("coverage", "risk")}


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _expected(ranks: RetrievalRanks, uncertainty: Any, oracle: Oracle) -> dict[str, dict[str, float]]:
    """The figures of a text's uncertainty, with the probability of each first result to be right for its hit."""
    uncertainty = np.asarray(uncertainty)
    texts = np.arange(len(uncertainty))
    of_queries = {
        "text_to_image": (uncertainty, oracle[0][texts, ranks.text_to_image_top]),
        "image_to_text_by_retrieved_caption": (
            uncertainty[ranks.image_to_text_top],
            oracle[1][ranks.image_to_text_top, ranks.image_queries],
        ),
    }
    return {convention: _figures(*arrays) for convention, arrays in of_queries.items()}


def _expected_of_oracle(oracle: Oracle) -> dict[str, dict[str, float]]:
    """Those of the most probable results and their own probability, which nothing can beat."""
    best = {"text_to_image": oracle[0].max(axis=1), "image_to_text_by_retrieved_caption": oracle[1].max(axis=0)}
    return {convention: _figures(-probability, probability) for convention, probability in best.items()}


def _figures(uncertainty: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    metrics = confidence_metrics(uncertainty, correct, num_bins=NUM_BINS)
    return {name: metrics[name] for name in ("spearman", "r_squared", "aurc", "excess_aurc", "auroc")}
