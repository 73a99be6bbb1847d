"""The figures of a method on the test split: every confidence in both roles, with the metrics of the package.

*The text alone*: an uncertainty that needs no gallery; how ambiguous is the text? *Given the gallery*: a confidence of
the first result; is it right? Both are judged by whether the first result is the query's own counterpart.
"""

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch

from modeling_asymvlm.evaluation import (
    QueryPosteriors,
    RetrievalPosterior,
    RetrievalRanks,
    bootstrap_intervals,
    confidence_intervals,
    confidence_metrics,
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
    uncertainty_metrics,
)
from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .against_cosine import DIRECTIONS, NUM_BINS, corrected_figures, cosine_ranks, fitted_scale, of_cosine
from .attempts import attempt, failed
from .correction import CorrectionOfScores
from .protocol import TRUE_AMBIGUITY, Predictions


FEW_BINS = 5  # levels that hold enough queries where there are a few hundred
TRENDS = ("spearman", "r_squared")
NUM_RESAMPLES = 1000
CURVE_POINTS = 200
FITTED_POSTERIOR = "posterior, fitted scale"

# Probability of each pair to belong together, text->image and image->text, where the data tell it.
Oracle = tuple[np.ndarray, np.ndarray]


def judge(
    validation: Predictions,
    test: Predictions,
    validation_split: EmbeddingSplit,
    test_split: EmbeddingSplit,
    oracle: Oracle | None = None,
    correction: CorrectionOfScores | None = None,
) -> dict[str, Any]:
    """
    All figures of a method as JSON-ready numbers. The scale of the posterior is fitted on the validation split, for
    each direction by itself; of several uncertainties of a text, that of the lowest AURC there is the `headline`. What
    the data do not allow stands as `{"error": message}` in its place.

    Returns:
        `retrieval`; `of_cosine`, the share of R@1 of the backbone's cosine that is kept and the paired difference to
        it; `corrected`, the same and the posterior with the evidence correction, where there is one; `headline`;
        `text_alone` and `given_gallery`, by confidence and direction; `scales`; `notes` on them;
        `rank_correlation` of each confidence with the true ambiguity and `specificity` with the captions' levels,
        where known; `curves` of risk and coverage, text->image; `intervals`, of 95 % by bootstrap over images;
        `oracle` where there is one: the figures expected over the pairings that the world allows, which leave out the
        luck of the draw, and those of the true posterior; and `concentration`, one a caption, where there is one.
    """
    index = test_split.text_image_index
    ranks = rank_both_ways(test.scores, index)
    text_alone = {
        name: attempt(partial(_text_alone, ranks, test.text_uncertainty.get(name), test.image_uncertainty.get(name)))
        for name in dict.fromkeys([*test.text_uncertainty, *test.image_uncertainty])
    }
    scales, notes = {}, []
    for direction in DIRECTIONS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scales[direction] = attempt(partial(fitted_scale, validation, validation_split, direction))
        notes += [f"{direction}, validation: {warning.message}" for warning in caught]
    given_gallery, per_text = _given_gallery(ranks, test, index, scales)
    cosine = cosine_ranks(test_split)
    record = {
        "retrieval": {**recall_at_k(ranks), **median_rank(ranks)},
        "of_cosine": of_cosine(ranks, cosine, index, NUM_RESAMPLES),
        "headline": _headline(validation, validation_split),
        "text_alone": text_alone,
        "given_gallery": given_gallery,
        "scales": {**scales, "own": test.logit_scale},
        "notes": notes,
        "intervals": _intervals(ranks, test, per_text.get(FITTED_POSTERIOR), index),
    }
    if correction is not None:
        record["corrected"] = attempt(
            lambda: corrected_figures(
                correction,
                (validation, validation_split),
                (test, test_split),
                scales["text_to_image"],
                cosine,
                NUM_RESAMPLES,
            )
        )
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
        metrics = retrieval_uncertainty_metrics(ranks, text, image, num_bins=NUM_BINS)
        metrics["text_to_image"] |= _few_levels(text, ranks.text_to_image_rank == 0)
        return metrics
    image = np.asarray(image)
    by_image = ranks.image_to_text_rank == 0
    return {  # as the conventions of a method whose texts alone are uncertain, with the sides exchanged
        "text_to_image_by_retrieved_image": confidence_metrics(
            image[ranks.text_to_image_top], ranks.text_to_image_rank == 0, num_bins=NUM_BINS
        ),
        "image_to_text_by_image": confidence_metrics(image[ranks.image_queries], by_image, num_bins=NUM_BINS),
    }


def _given_gallery(
    ranks: RetrievalRanks, test: Predictions, index: torch.Tensor, scales: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metrics by confidence and direction, and the uncertainty of each text by every confidence."""
    correct = {"text_to_image": ranks.text_to_image_rank == 0, "image_to_text": ranks.image_to_text_rank == 0}
    metrics: dict[str, Any] = {}
    per_text: dict[str, np.ndarray] = {}

    def add(name: str, direction: str, uncertainty: np.ndarray) -> None:
        metrics.setdefault(name, {})[direction] = attempt(partial(_confidence, uncertainty, correct[direction]))
        if direction == "text_to_image":
            per_text[name] = uncertainty

    for direction in DIRECTIONS:
        for kind, scale in (("fitted", scales[direction]), ("own", test.logit_scale)):
            if scale is None:
                continue
            name = f"posterior, {kind} scale"
            if failed(scale):
                for confidence in (name, f"entropy, {kind} scale"):
                    metrics.setdefault(confidence, {})[direction] = scale
            else:
                posterior = retrieval_posterior(test.scores, index, logit_scale=scale)
                of_queries: QueryPosteriors = getattr(posterior, direction)
                metrics.setdefault(name, {})[direction] = attempt(partial(_of_posterior, posterior, ranks, direction))
                if direction == "text_to_image":
                    per_text[name] = 1 - of_queries.top_probability
                add(f"entropy, {kind} scale", direction, of_queries.entropy)
        of_queries = getattr(retrieval_posterior(test.scores, index, logit_scale=1.0), direction)
        add("top-1 score", direction, -of_queries.top_score)
        add("top-1/top-2 margin", direction, -of_queries.score_margin)
    return metrics, per_text


def _of_posterior(posterior: RetrievalPosterior, ranks: RetrievalRanks, direction: str) -> dict[str, Any]:
    uncertainty = 1 - getattr(posterior, direction).top_probability
    metrics = posterior_metrics(posterior, ranks, num_bins=NUM_BINS)[direction]
    return metrics | _few_levels(uncertainty, getattr(ranks, f"{direction}_rank") == 0)


def _confidence(uncertainty: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    return confidence_metrics(uncertainty, correct, num_bins=NUM_BINS) | _few_levels(uncertainty, correct)


def _few_levels(uncertainty: Any, correct: np.ndarray) -> dict[str, float]:
    metrics = uncertainty_metrics(uncertainty, correct, num_bins=FEW_BINS)
    return {f"{name}_few": metrics[name] for name in TRENDS}


def _intervals(
    ranks: RetrievalRanks, test: Predictions, posterior: np.ndarray | None, index: torch.Tensor
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Bootstrap over images of what the tables show: by confidence, convention and figure."""
    images = np.asarray(index)
    hit, answered = ranks.text_to_image_rank == 0, ranks.image_to_text_rank == 0
    intervals: dict[str, Any] = {
        "R@1": {
            "text_to_image": _recall_interval(hit, images),
            "image_to_text": _recall_interval(answered, None),
        },
    }
    if posterior is not None:
        intervals[FITTED_POSTERIOR] = {"text_to_image": _confidence_intervals(posterior, hit, images)}
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


def _confidence_intervals(uncertainty: np.ndarray, correct: np.ndarray, clusters: np.ndarray | None) -> dict[str, Any]:
    options = {"clusters": clusters, "num_bins": NUM_BINS, "num_resamples": NUM_RESAMPLES}
    return attempt(partial(confidence_intervals, uncertainty, correct, **options))


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
