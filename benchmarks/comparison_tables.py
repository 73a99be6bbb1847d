"""The tables of a comparison, from the figures of its runs."""

import math
from collections.abc import Sequence
from typing import Any

from common import mean_and_deviation

from modeling_asymvlm.report import markdown_table


Runs = dict[str, list[dict[str, Any]]]  # by method: one record, as `judge` gives it, for each seed

WITH_INTERVALS = ("recall", "spearman", "auroc")

TEXT_ALONE_COLUMNS = (
    ("t→i R@1", "R@1", "text_to_image", "recall", 4),
    ("S", None, "text_to_image", "spearman", 2),
    ("R²", None, "text_to_image", "r_squared", 2),
    ("AURC", None, "text_to_image", "aurc", 3),
    ("excess", None, "text_to_image", "excess_aurc", 3),
    ("AUROC", None, "text_to_image", "auroc", 3),
    ("i→t R@1", "R@1", "image_to_text", "recall", 3),
    ("S, caption", None, "image_to_text_by_retrieved_caption", "spearman", 2),
    ("R², caption", None, "image_to_text_by_retrieved_caption", "r_squared", 2),
    ("S, image", None, "image_to_text_by_image", "spearman", 2),
    ("R², image", None, "image_to_text_by_image", "r_squared", 2),
)
GIVEN_GALLERY_COLUMNS = tuple(
    (f"{arrow} {title}", direction, *keys)
    for direction, arrow in (("text_to_image", "t→i"), ("image_to_text", "i→t"))
    for title, *keys in (
        ("S", "spearman", 2),
        ("R²", "r_squared", 2),
        ("AURC", "aurc", 3),
        ("excess", "excess_aurc", 3),
        ("AUROC", "auroc", 3),
        ("NLL", "negative_log_likelihood", 3),
        ("ECE", "expected_calibration_error", 3),
    )
)


def rows_in_short(runs: Runs, labels: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each method: R@1, its first uncertainty of a text alone, and its posterior with a fitted scale."""
    alone = {row["method"]: row for row in reversed(rows_of_text_alone(runs, labels))}
    given = {row["method"]: row for row in reversed(rows_given_gallery(runs, labels))}
    return [
        {title: alone[label][title] for title in ("method", "t→i R@1", "i→t R@1", "uncertainty")}
        | {f"{title}, text alone": alone[label][title] for title in ("S", "R²", "AURC", "AUROC")}
        | {title: alone[label][title] for title in ("rho ambiguity", "rho level") if title in alone[label]}
        | {f"{title}, posterior": given[label][f"t→i {title}"] for title in ("AURC", "AUROC", "NLL")}
        for label in alone
    ][::-1]


def rows_of_text_alone(runs: Runs, labels: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each method and uncertainty of a text, or of an image, that needs no gallery."""
    rows = []
    for method, records in runs.items():
        for confidence in records[0]["text_alone"]:
            cells = {}
            for title, key, convention, figure, digits in TEXT_ALONE_COLUMNS:
                if key == "R@1":
                    values = [record["retrieval"][f"{convention}_recall@1"] for record in records]
                else:
                    values = [record["text_alone"][confidence].get(convention, {}).get(figure) for record in records]
                interval = _interval(records, key or confidence, convention, figure)
                cells[title] = _cell(values, digits, interval)
            for title, part in (("rho ambiguity", "rank_correlation"), ("rho level", "specificity")):
                if part in records[0]:
                    values = [record[part].get(confidence) for record in records]
                    if part == "specificity":
                        values = [value["mean_group_spearman"] if value else None for value in values]
                    cells[title] = _cell(values, 3)
            rows.append({"method": labels[method], "uncertainty": confidence, **cells})
    return rows


def rows_given_gallery(runs: Runs, labels: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each method and confidence of a first result: every one of the cosine's, the posterior of others."""
    rows = []
    for method, records in runs.items():
        for confidence in records[0]["given_gallery"]:
            if method != "cosine" and not confidence.startswith("posterior"):
                continue
            cells = {}
            for title, direction, figure, digits in GIVEN_GALLERY_COLUMNS:
                of_direction = [record["given_gallery"][confidence][direction] for record in records]
                values = [{**each, **each.get("calibration", {})}.get(figure) for each in of_direction]
                interval = _interval(records, confidence, direction, figure)
                cells[title] = _cell(values, digits, interval)
            if "rank_correlation" in records[0]:
                cells["rho ambiguity"] = _cell([record["rank_correlation"][confidence] for record in records], 3)
            rows.append({"method": labels[method], "confidence": confidence, **cells})
    return rows


def rows_against_oracle(runs: Runs, labels: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each method and uncertainty of a text: R@1 and trends expected over the pairings of the world."""
    rows = []
    for method, records in runs.items():
        for confidence in records[0]["oracle"]["expected"] or {"": None}:
            cells = {}
            for title, direction in (("t→i", "text_to_image"), ("i→t", "image_to_text")):
                recalls = [record["oracle"][f"{direction}_expected_recall@1"] for record in records]
                shares = [100 * record["oracle"][f"{direction}_oracle_share"] for record in records]
                cells[f"{title} expected R@1"] = _cell(recalls, 4)
                cells[f"{title} share of the best, %"] = _cell(shares, 1)
                convention = direction if direction == "text_to_image" else f"{direction}_by_retrieved_caption"
                for name, figure in (("S", "spearman"), ("R²", "r_squared")):
                    trends = [record["oracle"]["expected"].get(confidence, {}) for record in records]
                    cells[f"{title} {name}"] = _cell([each.get(convention, {}).get(figure) for each in trends], 2)
            rows.append({"method": labels[method], "uncertainty": confidence, **cells})
    return rows


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table: mean ± standard deviation over seeds, or the value with its interval of 95 %."""
    header = list(rows[0])
    return markdown_table([header, *([_text(row[title]) for title in header] for row in rows)])


def _interval(records: list[dict[str, Any]], confidence: str, direction: str, figure: str) -> list[float] | None:
    """The interval of a single run, of the figures for which the tables have room."""
    if len(records) > 1 or figure not in WITH_INTERVALS:
        return None
    return records[0]["intervals"].get(confidence, {}).get(direction, {}).get(figure)


def _cell(values: Sequence[float | None], digits: int, interval: Sequence[float] | None = None) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {"values": known, "digits": digits, "interval": interval}


def _text(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    if not cell["values"]:
        return ""
    if any(math.isnan(value) for value in cell["values"]):
        return "undefined"
    text = mean_and_deviation(cell["values"], cell["digits"])
    if cell["interval"] is not None and not any(math.isnan(bound) for bound in cell["interval"]):
        text += " [{:.{digits}f}, {:.{digits}f}]".format(*cell["interval"], digits=cell["digits"])
    return text
