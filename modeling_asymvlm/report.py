"""What a trained model does on a split: its retrieval and uncertainty, as numbers and as a table."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from .data import EmbeddingSplit
from .evaluation import (
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
from .modeling_asymvlm import AsymVLMModel
from .objective import pair_scores


NUM_BINS = 10

Row = tuple[str, ...]

CONFIDENCES = (
    ("uncertainty", "text_to_image", "1/kappa of the caption, text -> image"),
    ("uncertainty", "image_to_text_by_retrieved_caption", "1/kappa of the retrieved caption, image -> text"),
    ("posterior", "text_to_image", "posterior of the first image, text -> image"),
    ("posterior", "image_to_text", "posterior of the first caption, image -> text"),
)


@torch.no_grad()
def likelihood_scores(model: AsymVLMModel, split: EmbeddingSplit, *, batch_size: int = 4096) -> EmbeddingScores:
    """
    The log-likelihood ratio, in nats against the uniform density, of every image of a split under every caption; for a
    deterministic model the cosine.

    Args:
        model (`AsymVLMModel`): in evaluation mode, on any device.
        split (`EmbeddingSplit`): cached features.
        batch_size (`int`, *optional*, defaults to 4096): texts at a time.

    Returns:
        Scores of shape `(captions, images)`; their `text_embeds` and `image_embeds` are the model's, on its device.
    """
    texts = split.text_features
    text_embeds = torch.cat(
        [
            model(text_features=texts[start : start + batch_size].to(model.device)).text_embeds
            for start in range(0, len(texts), batch_size)
        ]
    )
    image_embeds = model(image_features=split.image_features[:].to(model.device)).image_embeds
    law = {"distribution": model.config.distribution, "normalizer": model.config.normalizer}
    return EmbeddingScores(text_embeds, image_embeds, partial(pair_scores, **law))


def evaluate_split(
    model: AsymVLMModel,
    split: EmbeddingSplit,
    *,
    batch_size: int = 4096,
    logit_scale: float | None = None,
    num_resamples: int = 1000,
) -> dict[str, Any]:
    """
    Evaluates a model on cached features.

    Args:
        model (`AsymVLMModel`): in evaluation mode, on any device.
        split (`EmbeddingSplit`): the images are the gallery, the captions the queries, and the other way round.
        batch_size (`int`, *optional*, defaults to 4096): texts at a time.
        logit_scale (`float`, *optional*):
            Temperature tau of the retrieval posterior; by default the model's own.
        num_resamples (`int`, *optional*, defaults to 1000): of the bootstrap over images.

    Returns:
        `num_images`, `num_captions`; `retrieval` and, for the cosine of the backbone's own features,
        `backbone_retrieval`, as [`~evaluation.recall_at_k`] gives them, with `median_rank` and `backbone_median_rank`;
        `concentration`, its 1 %, 50 % and 99 % quantiles; `uncertainty` of 1 / kappa with 10 bins, as
        [`~evaluation.retrieval_uncertainty_metrics`] gives it; `posterior`, the temperature `logit_scale` and the
        metrics of [`~evaluation.posterior_metrics`]; `intervals`, 95 % bootstrap intervals over images, of the same
        keys; `risk_coverage`, the curve of each confidence at 200 coverages; `rank_correlation_with_ambiguity` where
        the captions' true ambiguity is known, and `specificity`, of the images whose captions have several levels in
        a hierarchy, where there are such.
        `concentration` and what is made from it are absent for a deterministic model; `uncertainty`, `posterior`,
        their curves and intervals with fewer than 10 images or captions.
    """
    scores = likelihood_scores(model, split, batch_size=batch_size)
    cosines = EmbeddingScores(
        split.text_features[:], scores.image_embeds, partial(pair_scores, distribution="deterministic")
    )
    ranks = rank_both_ways(scores, split.text_image_index)
    cosine_ranks = rank_both_ways(cosines, split.text_image_index)
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
        results["posterior"] = {"logit_scale": tau, **posterior_metrics(posterior, ranks, num_bins=NUM_BINS)}
    if model.config.distribution != "deterministic":
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
    return results


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


def format_table(results: dict[str, Any]) -> str:
    """The results of [`evaluate_split`] as GitHub-flavoured Markdown tables, readable in a terminal as well."""
    tables = [_retrieval_rows(results)]
    intervals = results.get("intervals", {})
    rows: list[Row] = [
        (
            f"Does uncertainty foretell errors? ({NUM_BINS} bins)",
            "S (ideal -1)",
            "R² (ideal 1)",
            "-S·R² (ideal 1)",
            "AUROC (chance 0.5)",
            "AURC (best possible)",
        )
    ]
    for role, name, label in CONFIDENCES:
        if name in results.get(role, {}):
            metrics, interval = results[role][name], intervals.get(role, {}).get(name, {})
            rows.append(
                (
                    label,
                    _number(metrics["spearman"], interval.get("spearman")),
                    _number(metrics["r_squared"]),
                    _number(metrics["neg_spearman_r_squared"]),
                    _number(metrics["auroc"], interval.get("auroc")),
                    f"{_number(metrics['aurc'], interval.get('aurc'))} ({_number(metrics['optimal_aurc'])})",
                )
            )
    tables.append(rows)
    rows = [("Is the posterior a probability?", "stated", "R@1", "ECE (ideal 0)", "Brier (ideal 0)", "NLL in nats")]
    for direction, label in (("text_to_image", "text -> image"), ("image_to_text", "image -> text")):
        if "posterior" in results:
            metrics = results["posterior"][direction]
            calibration = metrics["calibration"]
            stated = np.average(calibration["bin_confidence"], weights=calibration["bin_count"])
            figures = calibration["expected_calibration_error"], calibration["brier_score"]
            columns = stated, 1 - metrics["error_rate"], *figures, metrics["negative_log_likelihood"]
            rows.append((f"{label}, tau = {results['posterior']['logit_scale']:.3g}", *map(_number, columns)))
    tables += [rows, _other_rows(results)]
    return "\n\n".join(markdown_table(rows) for rows in tables if len(rows) > 1)


def _retrieval_rows(results: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [("Retrieval", "this model", "cosine of the backbone")]
    for direction, label in (("text_to_image", "text -> image"), ("image_to_text", "image -> text")):
        for k in (1, 5, 10):
            name = f"{direction}_recall@{k}"
            interval = results.get("intervals", {}).get("retrieval", {}).get(name)
            own, of_backbone = results["retrieval"][name], results["backbone_retrieval"][name]
            rows.append((f"{label} R@{k}", _number(own, interval, digits=4), _number(of_backbone, digits=4)))
        if "median_rank" in results:
            name = f"{direction}_median_rank"
            medians = results["median_rank"][name], results["backbone_median_rank"][name]
            rows.append((f"{label} median rank (best 1)", *(f"{median:g}" for median in medians)))
    return rows


def _other_rows(results: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [("Other", "")]
    if "rank_correlation_with_ambiguity" in results:
        correlation = results["rank_correlation_with_ambiguity"]
        rows.append(("rank correlation of 1/kappa with the true ambiguity", _number(correlation)))
    if "specificity" in results:
        specificity = results["specificity"]
        correlation = specificity["mean_group_spearman"]
        label = f"rank correlation of kappa with the caption's level, {specificity['num_groups']} images"
        rows.append((label, _number(correlation)))
        rows.append(
            ("pairs in which the specific caption has the higher kappa", _number(specificity["pair_accuracy"]))
        )
    if "concentration" in results:
        quantiles = ", ".join(f"{value:.3g}" for value in results["concentration"].values())
        rows.append(("kappa at 1 %, 50 % and 99 % of the captions", quantiles))
    rows += [(f"time for {name}", f"{seconds:.1f} s") for name, seconds in results.get("time", {}).items()]
    return rows


def _number(value: float, interval: Sequence[float] | None = None, *, digits: int = 3) -> str:
    if math.isnan(value):
        return "undefined"
    text = f"{value + 0.0:.{digits}f}"  # no minus sign before a zero
    if interval is None or math.isnan(interval[0]):
        return text
    return f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured Markdown table with aligned columns; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
