"""Every confidence of a first image side by side, and what a head gains or loses against its backbone."""

from typing import Any, NamedTuple

import numpy as np

from ..calibration.calibration import Calibration
from ..calibration.confidences import CalibratedConfidence
from ..evaluation import (
    RetrievalPosterior,
    RetrievalRanks,
    auroc_difference_interval,
    bootstrap_intervals,
    calibration_metrics,
    confidence_intervals,
    selective_metrics,
)
from ..store.embedding_store import EmbeddingSplit


class Side(NamedTuple):
    """What one scorer finds: ranks both ways, and the posterior of its first results."""

    ranks: RetrievalRanks
    posterior: RetrievalPosterior


def confidence_figures(
    shipped: Side,
    backbone: Side,
    split: EmbeddingSplit,
    uncertainty: np.ndarray | None,
    calibration: Calibration,
    num_resamples: int,
) -> dict[str, dict[str, Any]]:
    """
    The worth of every confidence text -> image.

    Args:
        shipped, backbone (`Side`): the model as it ships, and the backbone's cosine with a fitted scale.
        split (`EmbeddingSplit`): whose they are.
        uncertainty (float64, shape `(captions,)`, *optional*): 1 / kappa.
        calibration (`Calibration`): of the model's head.
        num_resamples (`int`): of the bootstrap over images.

    Returns:
        For each of `concentration`, `text_confidence`, `posterior`, `confidence`, `backbone_posterior` and
        `backbone_top1_cosine`: `auroc` and `aurc` with `auroc_interval` and `aurc_interval`; for all but the last,
        `difference_to_backbone`, a 95 % interval of what the AUROC has above that of `backbone_posterior`, images
        drawn together; for probabilities `expected_calibration_error` and its bins, `calibration`; and `trusted`, for
        those of the calibration.
        The last two are judged by the backbone's own first results, the others by the model's.
    """
    of_text, of_backbone = shipped.posterior.text_to_image, backbone.posterior.text_to_image
    own, other = shipped.ranks.text_to_image_rank == 0, backbone.ranks.text_to_image_rank == 0
    images = np.asarray(split.text_image_index)
    scores: dict[str, tuple[np.ndarray, np.ndarray, bool]] = {}  # confidence, correctness, is a probability
    if uncertainty is not None:
        scores["concentration"] = -uncertainty, own, False
    scores["text_confidence"] = calibration.text_probability(split.text_features[:]), own, True
    scores["posterior"] = of_text.top_probability, own, True
    scores["confidence"] = calibration.result_probability(np.log(of_text.top_probability)), own, True
    scores["backbone_posterior"] = of_backbone.top_probability, other, True
    scores["backbone_top1_cosine"] = of_backbone.top_score, other, False
    trusted = {"text_confidence": calibration.of_text, "confidence": calibration.of_result}
    figures = {}
    for name, (confidence, correct, is_probability) in scores.items():
        figures[name] = _worth(confidence, correct, images, is_probability, num_resamples)
        if not name.startswith("backbone"):
            figures[name]["difference_to_backbone"] = auroc_difference_interval(
                (confidence, of_backbone.top_probability),
                (correct, other),
                clusters=images,
                num_resamples=num_resamples,
            )
        if name in trusted:
            source: CalibratedConfidence = trusted[name]
            figures[name]["trusted"] = source.measured.is_trusted
    return figures


def _worth(
    confidence: np.ndarray, correct: np.ndarray, images: np.ndarray, is_probability: bool, num_resamples: int
) -> dict[str, Any]:
    metrics = selective_metrics(-confidence, correct)
    intervals = confidence_intervals(-confidence, correct, clusters=images, num_bins=None, num_resamples=num_resamples)
    worth: dict[str, Any] = {name: metrics[name] for name in ("auroc", "aurc")}
    worth |= {f"{name}_interval": intervals[name] for name in ("auroc", "aurc")}
    if is_probability:
        calibration = calibration_metrics(confidence, correct, strategy="quantile")
        worth["expected_calibration_error"] = calibration["expected_calibration_error"]
        worth["calibration"] = calibration
    return worth


def differences_to_backbone(
    shipped: Side, backbone: Side, split: EmbeddingSplit, num_resamples: int
) -> dict[str, dict[str, Any]]:
    """
    What the model has above its backbone's cosine, whose scale was fitted on held-out captions.

    Returns:
        For `text_to_image_recall@1`, `image_to_text_recall@1` and `negative_log_likelihood` (text -> image, in nats,
        lower is better): `mean`, and `interval`, 95 % over images.
    """
    ranks, other = shipped.ranks, backbone.ranks
    images = np.asarray(split.text_image_index)
    differences = {
        "text_to_image_recall@1": (_hits(ranks.text_to_image_rank) - _hits(other.text_to_image_rank), images),
        "image_to_text_recall@1": (
            _hits(ranks.image_to_text_rank) - _hits(other.image_to_text_rank),
            ranks.image_queries,
        ),
        "negative_log_likelihood": (
            backbone.posterior.text_to_image.own_log_probability - shipped.posterior.text_to_image.own_log_probability,
            images,
        ),
    }
    return {
        name: {
            "mean": float(values.mean()),
            "interval": bootstrap_intervals(np.mean, values, clusters=clusters, num_resamples=num_resamples),
        }
        for name, (values, clusters) in differences.items()
    }


def _hits(rank: np.ndarray) -> np.ndarray:
    return (rank == 0).astype(np.float64)
