"""What a trained model does on a split: its retrieval and uncertainty, as numbers and as a table."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .data import EmbeddingSplit
from .evaluation import (
    RetrievalRanks,
    rank_both_ways,
    rank_correlation,
    recall_at_k,
    retrieval_uncertainty_metrics,
    specificity_correlation,
)
from .modeling_asymvlm import AsymVLMModel
from .objective import pair_scores


NUM_BINS = 10

Row = tuple[str, ...]

DIRECTION_LABELS = {
    "text_to_image": "text -> image, by the caption",
    "image_to_text_by_retrieved_caption": "image -> text, by the retrieved caption",
}


@torch.no_grad()
def evaluate_split(model: AsymVLMModel, split: EmbeddingSplit, *, batch_size: int = 4096) -> dict[str, Any]:
    """
    Evaluates a model on cached features.

    Args:
        model (`AsymVLMModel`): in evaluation mode, on any device.
        split (`EmbeddingSplit`): the images are the gallery, the captions the queries, and the other way round.
        batch_size (`int`, *optional*, defaults to 4096): texts at a time.

    Returns:
        `num_images`, `num_captions`; `retrieval` and, for the cosine of the backbone's own features,
        `backbone_retrieval`, as [`~evaluation.recall_at_k`] gives them; `concentration`, its 1 %, 50 % and 99 %
        quantiles; `uncertainty` of 1 / kappa with 10 bins, as [`~evaluation.retrieval_uncertainty_metrics`] gives it,
        absent with fewer than 10 images or captions and for a deterministic model;
        `rank_correlation_with_ambiguity` where the captions' true ambiguity is known, and `specificity` where the
        captions have levels in a hierarchy.
    """
    device = model.device
    text_embeds = torch.cat(
        [model(text_features=features.to(device)).text_embeds for features in split.text_features.split(batch_size)]
    )
    image_embeds = model(image_features=split.image_features[:].to(device)).image_embeds
    ranks = _ranks(
        text_embeds, image_embeds, split, distribution=model.config.distribution, normalizer=model.config.normalizer
    )
    cosine_ranks = _ranks(split.text_features[:].to(device), image_embeds, split, distribution="deterministic")
    concentration = torch.linalg.vector_norm(text_embeds, dim=-1).cpu()
    results: dict[str, Any] = {
        "num_images": len(split.image_ids),
        "num_captions": len(split.captions),
        "retrieval": recall_at_k(ranks),
        "backbone_retrieval": recall_at_k(cosine_ranks),
    }
    if model.config.distribution == "deterministic":
        return results
    quantiles = torch.quantile(concentration.double(), torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64))
    results["concentration"] = dict(zip(("1%", "50%", "99%"), quantiles.tolist(), strict=True))
    uncertainty = 1 / concentration
    if min(len(split.captions), len(ranks.image_queries)) >= NUM_BINS:
        results["uncertainty"] = retrieval_uncertainty_metrics(ranks, uncertainty, num_bins=NUM_BINS)
    if "ambiguity" in split.columns:
        results["rank_correlation_with_ambiguity"] = rank_correlation(uncertainty, split.columns["ambiguity"])
    if "level" in split.columns:
        results["specificity"] = specificity_correlation(concentration, split.columns["level"], split.text_image_index)
    return results


def _ranks(text_embeds: torch.Tensor, image_embeds: torch.Tensor, split: EmbeddingSplit, **law: str) -> RetrievalRanks:
    return rank_both_ways(
        lambda rows: pair_scores(text_embeds[rows], image_embeds, **law).cpu(),
        split.text_image_index,
        num_images=len(split.image_ids),
    )


def format_table(results: dict[str, Any]) -> str:
    """The results of [`evaluate_split`] as GitHub-flavoured Markdown tables, readable in a terminal as well."""
    header: Row = ("Retrieval", "this model", "cosine of the backbone")
    rows: list[Row] = [header]
    for direction, label in (("text_to_image", "text -> image"), ("image_to_text", "image -> text")):
        for k in (1, 5, 10):
            recalls = (results[part][f"{direction}_recall@{k}"] for part in ("retrieval", "backbone_retrieval"))
            rows.append((f"{label} R@{k}", *(f"{recall:.4f}" for recall in recalls)))
    tables = [rows]
    if "uncertainty" in results:
        rows = [(f"Uncertainty 1/kappa, {NUM_BINS} bins", "S (ideal -1)", "R² (ideal 1)", "-S·R² (ideal 1)")]
        for direction, label in DIRECTION_LABELS.items():
            metrics = results["uncertainty"][direction]
            names = ("spearman", "r_squared", "neg_spearman_r_squared")
            rows.append((label, *(_number(metrics[name]) for name in names)))
        tables.append(rows)
    rows = [("Other", "")]
    if "rank_correlation_with_ambiguity" in results:
        correlation = results["rank_correlation_with_ambiguity"]
        rows.append(("rank correlation of 1/kappa with the true ambiguity", _number(correlation)))
    if "specificity" in results:
        correlation = results["specificity"]["mean_group_spearman"]
        rows.append(("rank correlation of kappa with the caption's level", _number(correlation)))
    if "concentration" in results:
        quantiles = ", ".join(f"{value:.3g}" for value in results["concentration"].values())
        rows.append(("kappa at 1 %, 50 % and 99 % of the captions", quantiles))
    rows += [(f"time for {name}", f"{seconds:.1f} s") for name, seconds in results.get("time", {}).items()]
    return "\n\n".join(markdown_table(rows) for rows in [*tables, rows] if len(rows) > 1)


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value + 0.0:.3f}"  # no minus sign before a zero


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured Markdown table with aligned columns; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
