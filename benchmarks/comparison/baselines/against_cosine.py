"""A method against its backbone's cosine: the share of R@1 that it keeps, and what the evidence correction changes."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from modeling_asymvlm.evaluation import (
    RetrievalRanks,
    bootstrap_intervals,
    fit_logit_scale,
    posterior_metrics,
    rank_both_ways,
    recall_at_k,
    retrieval_posterior,
    selective_metrics,
)
from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .attempts import attempt, failed
from .correction import CorrectionOfScores
from .protocol import Predictions


NUM_BINS = 10
DIRECTIONS = ("text_to_image", "image_to_text")


def judge_elsewhere(
    correction: CorrectionOfScores,
    validation: Predictions,
    validation_split: EmbeddingSplit,
    other_test: EmbeddingSplit,
    headline: str | None,
    num_resamples: int,
) -> dict[str, Any]:
    """The figures of a method on the test split of another store; everything else is of its own store."""
    test = correction.method.predict(other_test)
    index = other_test.text_image_index
    ranks, cosine = rank_both_ways(test.scores, index), cosine_ranks(other_test)
    hit = ranks.text_to_image_rank == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the record of its own store has the note
        scale = attempt(partial(fitted_scale, validation, validation_split, "text_to_image"))
    record = {
        "retrieval": recall_at_k(ranks),
        "of_cosine": of_cosine(ranks, cosine, index, num_resamples),
        "corrected": attempt(
            lambda: corrected_figures(
                correction, (validation, validation_split), (test, other_test), scale, cosine, num_resamples
            )
        ),
    }
    if headline is not None:
        record["text_alone"] = attempt(lambda: selective_metrics(test.text_uncertainty[headline], hit))
    return record


def fitted_scale(predictions: Predictions, split: EmbeddingSplit, direction: Any) -> Any:
    return fit_logit_scale(predictions.scores, split.text_image_index, direction=direction)


def cosine_ranks(split: EmbeddingSplit) -> RetrievalRanks:
    texts, images = (F.normalize(each[:].float(), dim=-1) for each in (split.text_features, split.image_features))
    return rank_both_ways(texts @ images.T, split.text_image_index)


def of_cosine(
    ranks: RetrievalRanks, cosine: RetrievalRanks, index: torch.Tensor, num_resamples: int
) -> dict[str, Any]:
    """By direction, `share_kept` of the cosine's R@1, `difference` of R@1 and its paired `interval` of 95 %."""
    clusters = {"text_to_image": np.asarray(index), "image_to_text": ranks.image_queries}
    figures = {}
    for direction in DIRECTIONS:
        own, other = ((getattr(each, f"{direction}_rank") == 0).astype(np.float64) for each in (ranks, cosine))
        interval = bootstrap_intervals(np.mean, own - other, clusters=clusters[direction], num_resamples=num_resamples)
        share = float(own.mean() / other.mean()) if other.any() else float("nan")
        figures[direction] = {"share_kept": share, "difference": float((own - other).mean()), "interval": interval}
    return figures


def corrected_figures(
    correction: CorrectionOfScores,
    on_validation: tuple[Predictions, EmbeddingSplit],
    on_test: tuple[Predictions, EmbeddingSplit],
    scale: Any,
    cosine: RetrievalRanks,
    num_resamples: int,
) -> dict[str, Any]:
    """The figures text -> image of the corrected scores, with the `sigma` and `beta` that validation chose."""
    if failed(scale):
        return scale
    test, test_split = on_test
    fitted = correction.fit(*on_validation, scale)
    scores = fitted.apply(scale * test.scores.double(), correction.evidence(test_split, scale))
    index = test_split.text_image_index
    ranks = rank_both_ways(scores, index)
    posterior = retrieval_posterior(scores, index, logit_scale=1.0)
    return {
        "sigma": fitted.sigma,
        "beta": fitted.beta,
        "recall": float((ranks.text_to_image_rank == 0).mean()),
        "of_cosine": of_cosine(ranks, cosine, index, num_resamples)["text_to_image"],
        "posterior": posterior_metrics(posterior, ranks, num_bins=NUM_BINS)["text_to_image"],
    }
