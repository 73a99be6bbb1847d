"""The tables of a comparison, from the figures of its runs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import mean_and_deviation
from benchmarks.comparison.baselines.attempts import failed, lookup
from benchmarks.comparison.baselines.judging import FITTED_POSTERIOR
from modeling_asymvlm.reporting.tables import markdown_table


Runs = dict[str, list[dict[str, Any]]]  # by method: one record, as `judge` gives it, for each seed

WITH_INTERVALS = ("recall", "spearman", "aurc", "auroc")
AREAS = (("AURC", "aurc", 3), ("AUROC", "auroc", 3))

TEXT_ALONE_COLUMNS = (
    ("t→i R@1", "R@1", "text_to_image", "recall", 4),
    ("S", None, "text_to_image", "spearman", 2),
    ("R²", None, "text_to_image", "r_squared", 2),
    ("−S·R²", None, "text_to_image", "neg_spearman_r_squared", 2),
    ("S, 5 levels", None, "text_to_image", "spearman_few", 2),
    ("R², 5 levels", None, "text_to_image", "r_squared_few", 2),
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
        ("−S·R²", "neg_spearman_r_squared", 2),
        ("S, 5 levels", "spearman_few", 2),
        ("R², 5 levels", "r_squared_few", 2),
        ("AURC", "aurc", 3),
        ("excess", "excess_aurc", 3),
        ("AUROC", "auroc", 3),
        ("NLL", "negative_log_likelihood", 3),
        ("ECE", "expected_calibration_error", 3),
    )
)


def headlines(records: Sequence[dict[str, Any]]) -> str:
    """The uncertainty of a text that the validation split chose, of each seed."""
    return " / ".join(dict.fromkeys(record["headline"] or "" for record in records))


def rows_in_short(runs: Runs, labels: dict[str, str]) -> list[dict[str, Any]]:
    """
    A row for each method, text -> image: R@1, the uncertainty of a text that validation chose, and the posterior with
    a fitted scale. With an oracle the figures are those expected over the pairings of the world.
    """
    rows = []
    for method, records in runs.items():
        cells: dict[str, Any] = {"method": labels[method], "seeds": str(len(records))}
        for arrow, direction in (("t→i", "text_to_image"), ("i→t", "image_to_text")):
            if "oracle" in records[0]:
                shares = [100 * record["oracle"][f"{direction}_oracle_share"] for record in records]
                cells[f"{arrow} R@1, % of the best"] = _cell(shares, 1)
            else:
                recalls = [record["retrieval"][f"{direction}_recall@1"] for record in records]
                cells[f"{arrow} R@1"] = _cell(recalls, 4, _interval(records, "R@1", direction, "recall"))
        cells["uncertainty"] = headlines(records)
        for title, figure, digits in (("S", "spearman", 2), ("R²", "r_squared", 2), *AREAS):
            values = [_of_text(record, "text_alone", record["headline"], figure) for record in records]
            cells[f"{title}, text alone"] = _cell(values, digits)
        if "rank_correlation" in records[0]:
            known = [record["rank_correlation"].get(record["headline"]) for record in records]
            cells["rho ambiguity"] = _cell(known, 3)
        for title, figure, digits in AREAS:
            values = [_of_text(record, "given_gallery", FITTED_POSTERIOR, figure) for record in records]
            cells[f"{title}, posterior"] = _cell(values, digits)
        own = "given_gallery", FITTED_POSTERIOR, "text_to_image", "negative_log_likelihood"
        cells["NLL, posterior"] = _values(records, own, 3)
        rows.append(cells)
    return rows


def rows_against_cosine(runs: Runs, labels: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each method: R@1 beside the cosine's, text -> image with the evidence correction and without it."""
    return [{"method": labels[method], **_against_cosine(records)} for method, records in runs.items()]


def rows_elsewhere(runs: Runs, labels: dict[str, str], store: str) -> list[dict[str, Any]]:
    """A row for each method: its figures on the test split of another store, everything chosen on its own."""
    rows = []
    for method, records in runs.items():
        there = [lookup(record, "elsewhere", store) for record in records]
        cells = {"method": labels[method], **_against_cosine(there), "uncertainty": headlines(records)}
        cells["AUROC, text alone"] = _values(there, ("text_alone", "auroc"), 3)
        rows.append(cells)
    return rows


def _against_cosine(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for arrow, direction in (("t→i", "text_to_image"), ("i→t", "image_to_text")):
        cells[f"{arrow} R@1"] = _values(records, ("retrieval", f"{direction}_recall@1"), 4)
        cells[f"{arrow} kept"] = _values(records, ("of_cosine", direction, "share_kept"), 3)
        cells[f"{arrow} − cosine"] = _difference(records, ("of_cosine", direction))
    cells["t→i R@1, corrected"] = _values(records, ("corrected", "recall"), 4)
    cells["beta"] = _values(records, ("corrected", "beta"), 2)
    cells["corrected − cosine"] = _difference(records, ("corrected", "of_cosine"))
    for title, figure, digits in (*AREAS, ("NLL", "negative_log_likelihood", 3)):
        cells[f"{title}, corrected"] = _values(records, ("corrected", "posterior", figure), digits)
    return cells


def _values(records: Sequence[dict[str, Any]], keys: Sequence[str], digits: int) -> dict[str, Any]:
    return _cell([lookup(record, *keys) for record in records], digits)


def _difference(records: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """Mean difference over the runs, and the means of the ends of its paired intervals."""
    found = [lookup(record, *keys) for record in records]
    if any(failed(each) for each in found) or None in found:
        return _cell(found, 3)
    ends = [float(np.mean([each["interval"][end] for each in found])) for end in (0, 1)]
    return {**_cell([float(np.mean([each["difference"] for each in found]))], 3, ends), "signed": True}


def _of_text(record: dict[str, Any], role: str, confidence: str | None, figure: str) -> Any:
    of_confidence = record["oracle"]["expected"] if "oracle" in record else record[role]
    return None if confidence is None else lookup(of_confidence, confidence, "text_to_image", figure)


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
                    values = [lookup(record, "text_alone", confidence, convention, figure) for record in records]
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
                of_direction = [lookup(record, "given_gallery", confidence, direction) for record in records]
                values = [_figure(each, figure) for each in of_direction]
                interval = _interval(records, confidence, direction, figure)
                cells[title] = _cell(values, digits, interval)
            if "rank_correlation" in records[0]:
                cells["rho ambiguity"] = _values(records, ("rank_correlation", confidence), 3)
            rows.append({"method": labels[method], "confidence": confidence, **cells})
    return rows


def _figure(part: Any, figure: str) -> Any:
    return part if failed(part) else {**(part or {}), **(part or {}).get("calibration", {})}.get(figure)


def rows_against_oracle(runs: Runs, labels: dict[str, str]) -> list[dict[str, Any]]:
    """
    A row for each method and uncertainty of a text, and for its posterior: the figures expected over the pairings of
    the world; and first those of the true posterior, which nothing can beat.
    """
    oracle = next(iter(runs.values()))[0]["oracle"]
    truth: dict[str, Any] = {"expected": {"true posterior": oracle["true_posterior"]}}
    for direction in ("text_to_image", "image_to_text"):
        truth[f"{direction}_expected_recall@1"] = oracle[f"{direction}_best_recall@1"]
        truth[f"{direction}_oracle_share"] = 1.0
    rows = _oracle_rows("the best possible", [truth], ["true posterior"])
    for method, records in runs.items():
        names = [name for name in records[0]["oracle"]["expected"] if name in records[0]["text_alone"]]
        rows += _oracle_rows(labels[method], [record["oracle"] for record in records], [*names, FITTED_POSTERIOR])
    return rows


def _oracle_rows(label: str, of_runs: list[dict[str, Any]], confidences: list[str]) -> list[dict[str, Any]]:
    rows = []
    for confidence in confidences:
        cells: dict[str, Any] = {"method": label, "confidence": confidence}
        for title, direction in (("t→i", "text_to_image"), ("i→t", "image_to_text")):
            cells[f"{title} R@1"] = _cell([each[f"{direction}_expected_recall@1"] for each in of_runs], 4)
            cells[f"{title} % of the best"] = _cell([100 * each[f"{direction}_oracle_share"] for each in of_runs], 1)
            convention = direction if direction == "text_to_image" else f"{direction}_by_retrieved_caption"
            if confidence == FITTED_POSTERIOR and convention != direction:
                continue
            expected = [each["expected"][confidence][convention] for each in of_runs]
            for name, figure, digits in (("S", "spearman", 2), ("R²", "r_squared", 2), *AREAS):
                cells[f"{title} {name}"] = _cell([each[figure] for each in expected], digits)
        rows.append(cells)
    return rows


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table: mean ± standard deviation over seeds, or the value with its interval of 95 %."""
    header = list(rows[0])
    return markdown_table([header, *([_text(row.get(title, "")) for title in header] for row in rows)])


def _interval(records: list[dict[str, Any]], confidence: str, direction: str, figure: str) -> list[float] | None:
    """The interval of a single run, of the figures for which the tables have room."""
    if len(records) > 1 or figure not in WITH_INTERVALS:
        return None
    interval = lookup(records[0]["intervals"], confidence, direction, figure)
    return None if failed(interval) else interval


def _cell(values: Sequence[Any], digits: int, interval: Sequence[float] | None = None) -> dict[str, Any]:
    """A cell of the values that there are; it says so where one of them failed."""
    if any(failed(value) for value in values):
        return {"values": [], "digits": digits, "interval": None, "failed": True}
    known = [value for value in values if value is not None]
    return {"values": known, "digits": digits, "interval": interval}


def _text(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    if cell.get("failed"):
        return "failed"
    if not cell["values"]:
        return ""
    if any(math.isnan(value) for value in cell["values"]):
        return "undefined"
    form = f"{'+' if cell.get('signed') else ''}.{cell['digits']}f"
    text = mean_and_deviation(cell["values"], cell["digits"])
    if cell.get("signed"):
        text = f"{cell['values'][0]:{form}}"
    if cell["interval"] is not None and not any(math.isnan(bound) for bound in cell["interval"]):
        text += " [{:{form}}, {:{form}}]".format(*cell["interval"], form=form)
    return text
