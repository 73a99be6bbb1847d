"""The rows of the tables."""

from typing import Any

import numpy as np
import torch

from benchmarks.common import mean_and_deviation
from benchmarks.trust.heads import LEVEL_OF_SIGNIFICANCE
from modeling_asymvlm.calibration.calibration import Calibration
from modeling_asymvlm.calibration.corpus import text_embeds_of
from modeling_asymvlm.evaluation import selective_metrics
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


CONFIDENCES = ("concentration", "text_confidence", "posterior", "confidence", "backbone_posterior")
PRESENCE = ("auroc", "ece", "top1_cosine_auroc")
RETRIEVAL = ("text_to_image_recall@1", "image_to_text_recall@1")


def never_worse(name: str, runs: list[dict[str, Any]]) -> list[str]:
    row = [name]
    for figure in (*RETRIEVAL, "negative_log_likelihood"):
        differences = [run["differences_to_backbone"][figure] for run in runs]
        low, high = (extreme([each["interval"][end] for each in differences]) for end, extreme in ((0, min), (1, max)))
        mean = np.mean([each["mean"] for each in differences])
        row.append(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    return row


def gain(name: str, runs: list[dict[str, Any]]) -> list[str]:
    posterior = [run["posterior"]["text_to_image"] for run in runs]
    columns = [
        ([run["retrieval"][RETRIEVAL[0]] for run in runs], 4),
        ([run["uncorrected_retrieval"][RETRIEVAL[0]] for run in runs], 4),
        ([run["backbone_retrieval"][RETRIEVAL[0]] for run in runs], 4),
        ([run["retrieval"][RETRIEVAL[1]] for run in runs], 4),
        ([run["backbone_retrieval"][RETRIEVAL[1]] for run in runs], 4),
        ([each["negative_log_likelihood"] for each in posterior], 3),
        ([each["auroc"] for each in posterior], 3),
        ([each["aurc"] for each in posterior], 3),
        ([run["correction"].beta for run in runs], 2),
        ([run["rank_correlation_with_ambiguity"] for run in runs if "rank_correlation_with_ambiguity" in run], 4),
    ]
    return [name, *(mean_and_deviation(values, digits) if values else "" for values, digits in columns)]


def confidence_row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    row = [name]
    for confidence in CONFIDENCES:
        worth = [run["confidences"][confidence] for run in runs]
        low = min(each["auroc_interval"][0] for each in worth)
        cell = f"{np.mean([each['auroc'] for each in worth]):.3f} [{low:.3f}]"
        if "expected_calibration_error" in worth[0]:
            cell += f", {np.mean([each['expected_calibration_error'] for each in worth]):.3f}"
        row.append(cell)
    presence = {key: np.mean([run["presence"][key] for run in runs]) for key in PRESENCE}
    row.append(f"{presence['auroc']:.3f}, {presence['ece']:.3f} (top-1 cosine {presence['top1_cosine_auroc']:.3f})")
    return [*row, mean_and_deviation([100 * run["flagged"] for run in runs], 1)]


def typicality_rows(run: dict[str, Any], hierarchy: EmbeddingSplit) -> list[list[str]]:
    """How well typicality tells captions of each level from test captions, and what concentration does."""
    calibration: Calibration = run["calibration"]
    test: EmbeddingSplit = run["splits"]["test"]
    levels = np.asarray(hierarchy.columns["level"])
    rows = []
    for level in np.unique(levels):
        own = torch.from_numpy(np.flatnonzero(levels == level))
        features = torch.cat([test.text_features[:], hierarchy.text_features[own]])
        inside = np.arange(len(features)) < len(test.captions)
        distance = calibration.typical.distance(features).numpy()
        kappa = torch.linalg.vector_norm(text_embeds_of(run["model"], features), dim=-1).numpy()
        share = float((calibration.typicality(hierarchy.text_features[own]) < LEVEL_OF_SIGNIFICANCE).mean())
        figures = [selective_metrics(distance, inside)["auroc"], selective_metrics(-kappa, inside)["auroc"], share]
        rows.append([f"HierarCaps level {level}", *(f"{figure:.3f}" for figure in figures)])
    return rows
