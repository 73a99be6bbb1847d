"""Figures as tables, for a console and for Markdown."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


Row = tuple[str, ...]


CONFIDENCES = (
    ("uncertainty", "text_to_image", "1/kappa of the caption, text -> image"),
    ("uncertainty", "image_to_text_by_retrieved_caption", "1/kappa of the retrieved caption, image -> text"),
    ("posterior", "text_to_image", "posterior of the first image, text -> image"),
    ("posterior", "image_to_text", "posterior of the first caption, image -> text"),
)


CONFIDENCE_NAMES = {
    "concentration": "1/kappa, a learned concentration",
    "text_confidence": "text confidence, from the text alone",
    "posterior": "posterior of the first image",
    "confidence": "confidence, the posterior recalibrated",
    "backbone_posterior": "posterior of the backbone's cosine",
    "backbone_top1_cosine": "first cosine of the backbone",
}


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
    tables += [rows, _confidence_rows(results), _difference_rows(results), _other_rows(results)]
    return "\n\n".join(markdown_table(rows) for rows in tables if len(rows) > 1)


def _retrieval_rows(results: dict[str, Any]) -> list[Row]:
    uncorrected = results.get("uncorrected_retrieval")
    plain = () if uncorrected is None else ("uncorrected",)
    rows: list[Row] = [("Retrieval", "this model", *plain, "cosine of the backbone")]
    for direction, label in (("text_to_image", "text -> image"), ("image_to_text", "image -> text")):
        for k in (1, 5, 10):
            name = f"{direction}_recall@{k}"
            interval = results.get("intervals", {}).get("retrieval", {}).get(name)
            own, of_backbone = results["retrieval"][name], results["backbone_retrieval"][name]
            others = [of_backbone] if uncorrected is None else [uncorrected[name], of_backbone]
            cells = (_number(value, digits=4) for value in others)
            rows.append((f"{label} R@{k}", _number(own, interval, digits=4), *cells))
        if "median_rank" in results:
            name = f"{direction}_median_rank"
            medians = results["median_rank"][name], results["backbone_median_rank"][name]
            cells = [f"{median:g}" for median in medians]
            rows.append((f"{label} median rank (best 1)", cells[0], *("" for _ in plain), cells[1]))
    return rows


def _confidence_rows(results: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [
        ("Confidence of a first image", "AUROC (chance 0.5)", "AURC", "ECE (ideal 0)", "AUROC above the backbone's")
    ]
    for name, worth in results.get("confidences", {}).items():
        error, above = worth.get("expected_calibration_error"), worth.get("difference_to_backbone")
        untrusted = " (not trusted)" if worth.get("trusted") is False else ""
        rows.append(
            (
                CONFIDENCE_NAMES[name] + untrusted,
                _number(worth["auroc"], worth["auroc_interval"]),
                _number(worth["aurc"], worth["aurc_interval"]),
                "" if error is None else _number(error),
                "" if above is None or math.isnan(above[0]) else f"[{above[0]:+.3f}, {above[1]:+.3f}]",
            )
        )
    return rows


def _difference_rows(results: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [("Above the backbone's cosine with a fitted scale", "mean", "95 % interval")]
    for name, difference in results.get("differences_to_backbone", {}).items():
        low, high = difference["interval"]
        label = name.replace("_", " ") + (" (less is better)" if name == "negative_log_likelihood" else "")
        rows.append((label, f"{difference['mean']:+.4f}", f"[{low:+.4f}, {high:+.4f}]"))
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


NUM_BINS = 10
