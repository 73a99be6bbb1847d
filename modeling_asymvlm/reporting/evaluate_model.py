"""What a trained model does on a split: its retrieval and uncertainty, as numbers and as a table."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..calibration.calibration import Calibration
from ..evaluation import (
    EmbeddingScores,
    RetrievalPosterior,
    RetrievalRanks,
    bootstrap_intervals,
    confidence_intervals,
    graded,
    median_rank,
    posterior_metrics,
    rank_both_ways,
    rank_correlation,
    recall_at_k,
    retrieval_posterior,
    retrieval_uncertainty_metrics,
    risk_coverage_curve,
    specificity_correlation,
)
from ..model.modeling_asymvlm import AsymVLMModel
from ..model.objective import Likelihood
from ..store.embedding_store import EmbeddingSplit
from .confidence_figures import Side, confidence_figures, differences_to_backbone
from .shipped_scores import corrected_scores, likelihood_scores
from .tables import NUM_BINS


def evaluate_split(
    model: AsymVLMModel,
    split: EmbeddingSplit,
    *,
    calibration: Calibration | None = None,
    batch_size: int = 4096,
    logit_scale: float | None = None,
    num_resamples: int = 1000,
) -> dict[str, Any]:
    """
    Evaluates a model on cached features, text -> image with the evidence correction of its calibration.

    Args:
        model (`AsymVLMModel`): in evaluation mode, on any device.
        split (`EmbeddingSplit`): the images are the gallery, the captions the queries, and the other way round.
        calibration (`Calibration`, *optional*): of the model's head.
        batch_size (`int`, *optional*, defaults to 4096): texts at a time.
        logit_scale (`float`, *optional*):
            Temperature tau of the posterior of uncorrected scores; by default the model's own.
        num_resamples (`int`, *optional*, defaults to 1000): of the bootstrap over images.

    Returns:
        `num_images`, `num_captions`; `retrieval` and, for the cosine of the backbone's own features,
        `backbone_retrieval`, as [`~evaluation.recall_at_k`] gives them, with `median_rank` and `backbone_median_rank`;
        `concentration`, its 1 %, 50 % and 99 % quantiles; `uncertainty` of 1 / kappa with 10 bins, as
        [`~evaluation.retrieval_uncertainty_metrics`] gives it; `posterior`, the temperature `logit_scale` and the
        metrics of [`~evaluation.posterior_metrics`]; `intervals`, 95 % bootstrap intervals over images, of the same
        keys; `risk_coverage`, the curve of each confidence at 200 coverages; `rank_correlation_with_ambiguity` where
        the captions' true ambiguity is known, and `specificity`, of the images whose captions have several levels in
        a hierarchy, where there are such. With a calibration also `uncorrected_retrieval`; `confidences`, every
        confidence of a first image, as [`confidence_figures`] gives them; and `differences_to_backbone`, of R@1 and
        the negative log-likelihood, with paired intervals.
        `concentration` and what is made from it are absent for a deterministic model; `uncertainty`, `posterior`,
        their curves and intervals with fewer than 10 images or captions.
    """
    scores = likelihood_scores(model, split, batch_size=batch_size)
    cosines = EmbeddingScores(split.text_features[:], scores.image_embeds, Likelihood("deterministic").scores)
    plain_ranks = rank_both_ways(scores, split.text_image_index)
    cosine_ranks = rank_both_ways(cosines, split.text_image_index)
    corrected = None if calibration is None else corrected_scores(scores, model, calibration)
    ranks = plain_ranks if corrected is None else _with_text_to_image(plain_ranks, corrected, split)
    results: dict[str, Any] = {
        "num_images": len(split.image_ids),
        "num_captions": len(split.captions),
        "retrieval": recall_at_k(ranks),
        "backbone_retrieval": recall_at_k(cosine_ranks),
        "median_rank": median_rank(ranks),
        "backbone_median_rank": median_rank(cosine_ranks),
    }
    enough = min(len(split.captions), len(ranks.image_queries)) >= NUM_BINS
    uncertainty = posterior = None
    if enough:
        tau = model.logit_scale.item() if logit_scale is None else logit_scale
        posterior = retrieval_posterior(scores, split.text_image_index, logit_scale=tau)
        if corrected is not None:
            shipped = retrieval_posterior(corrected, split.text_image_index, logit_scale=1.0)
            posterior = replace(posterior, text_to_image=shipped.text_to_image)
        results["posterior"] = {"logit_scale": tau, **posterior_metrics(posterior, ranks, num_bins=NUM_BINS)}
    if model.config.law.has_concentration:
        concentration = torch.linalg.vector_norm(scores.text_embeds, dim=-1).cpu()
        uncertainty = (1 / concentration).numpy()
        quantiles = torch.quantile(concentration.double(), torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64))
        results["concentration"] = dict(zip(("1%", "50%", "99%"), quantiles.tolist(), strict=True))
        if enough:
            results["uncertainty"] = retrieval_uncertainty_metrics(ranks, uncertainty, num_bins=NUM_BINS)
        if "ambiguity" in split.columns:
            results["rank_correlation_with_ambiguity"] = rank_correlation(uncertainty, split.columns["ambiguity"])
        if "level" in split.columns:
            level, group = split.columns["level"], np.asarray(split.text_image_index)
            kept = graded(level, group)
            if kept.any():
                results["specificity"] = specificity_correlation(concentration.numpy()[kept], level[kept], group[kept])
    results |= _curves_and_intervals(ranks, np.asarray(split.text_image_index), uncertainty, posterior, num_resamples)
    if calibration is not None:
        results["uncorrected_retrieval"] = recall_at_k(plain_ranks)
        if posterior is not None:
            backbone = retrieval_posterior(cosines, split.text_image_index, logit_scale=calibration.backbone_scale)
            sides = Side(ranks, posterior), Side(cosine_ranks, backbone)
            results["confidences"] = confidence_figures(*sides, split, uncertainty, calibration, num_resamples)
            results["differences_to_backbone"] = differences_to_backbone(*sides, split, num_resamples)
    return results


def _with_text_to_image(ranks: RetrievalRanks, corrected: EmbeddingScores, split: EmbeddingSplit) -> RetrievalRanks:
    """Ranks whose direction text -> image is that of corrected scores."""
    of_corrected = rank_both_ways(corrected, split.text_image_index)
    return replace(
        ranks,
        text_to_image_rank=of_corrected.text_to_image_rank,
        text_to_image_top=of_corrected.text_to_image_top,
    )


def _curves_and_intervals(
    ranks: RetrievalRanks,
    image_of_caption: np.ndarray,
    uncertainty: np.ndarray | None,
    posterior: RetrievalPosterior | None,
    num_resamples: int,
) -> dict[str, Any]:
    """Risk–coverage curves, and 95 % intervals by drawing images with their captions; keys as in the results."""
    rank = {"text_to_image": ranks.text_to_image_rank, "image_to_text": ranks.image_to_text_rank}
    images = {"text_to_image": image_of_caption, "image_to_text": ranks.image_queries}
    intervals: dict[str, Any] = {"retrieval": {}, "confidence_level": 0.95, "num_resamples": num_resamples}
    for direction, clusters in images.items():
        low_high = bootstrap_intervals(np.mean, rank[direction] == 0, clusters=clusters, num_resamples=num_resamples)
        intervals["retrieval"][f"{direction}_recall@1"] = low_high
    curves: dict[str, Any] = {}
    uncertainties = {}
    if posterior is not None:
        for direction in images:
            of_direction = getattr(posterior, direction)
            uncertainties["posterior", direction, direction] = 1 - of_direction.top_probability
        if uncertainty is not None:
            uncertainties["uncertainty", "text_to_image", "text_to_image"] = uncertainty
            retrieved = "image_to_text_by_retrieved_caption"
            uncertainties["uncertainty", retrieved, "image_to_text"] = uncertainty[ranks.image_to_text_top]
    for (role, name, direction), values in uncertainties.items():
        correct = rank[direction] == 0
        intervals.setdefault(role, {})[name] = confidence_intervals(
            values, correct, clusters=images[direction], num_bins=NUM_BINS, num_resamples=num_resamples
        )
        curve = risk_coverage_curve(values, correct, max_points=200)
        curves.setdefault(role, {})[name] = {
            key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in curve.items()
        }
    return {"intervals": intervals, "risk_coverage": curves}
