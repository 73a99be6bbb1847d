"""The report of a triage of captions."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.calibration import Calibration
from ..calibration.typicality import UNLIKE
from ..pairs.captions import Captions
from ..texts.triage import Triage
from ..utils.durable_files import move_into_place
from ..utils.extras import require


require(__name__, "pyarrow")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402


REPORT_SUFFIXES = (".jsonl", ".parquet")


ROWS_PER_GROUP = 65536


EXAMPLES = 3


SCHEMA = pa.schema(
    {
        "rank": pa.int64(),
        "row": pa.int64(),
        "caption": pa.large_string(),
        "image_id": pa.large_string(),
        "uncertainty": pa.float64(),
        "concentration": pa.float64(),
        "percentile": pa.float64(),
        "text_confidence": pa.float64(),
        "fits_about": pa.float64(),
        "typicality": pa.float64(),
        "cut": pa.bool_(),
        "duplicate_group": pa.int64(),
        "duplicate_place": pa.int64(),
        "duplicate_divergence": pa.float64(),
        "contradiction_place": pa.int64(),
        "contradiction_divergence": pa.float64(),
    }
)


def report_rows(captions: Captions, found: Triage, calibration: Calibration | None) -> Iterator[dict[str, Any]]:
    """The lines of the report, the vaguest caption first; see the top of this file."""
    reference = None if calibration is None else calibration.reference
    for rank, place in enumerate(np.argsort(found.concentration, kind="stable").tolist()):
        concentration = float(found.concentration[place])
        uncertainty = 1 / concentration if concentration else float("inf")
        has_duplicate, contradicted = found.duplicates.nearest[place] >= 0, found.contradiction[place] >= 0
        yield {
            "rank": rank,
            "row": captions.rows[place],
            "caption": captions.texts[place],
            "image_id": None if captions.image_ids is None else captions.image_ids[place],
            "uncertainty": uncertainty,
            "concentration": concentration,
            "percentile": None if reference is None else reference.percentile(uncertainty),
            **_calibrated(found, place),
            "cut": bool(found.cut[place]),
            "duplicate_group": int(found.duplicates.group[place]) if has_duplicate else None,
            "duplicate_place": int(found.duplicates.nearest[place]) if has_duplicate else None,
            "duplicate_divergence": float(found.duplicates.divergence[place]) if has_duplicate else None,
            "contradiction_place": int(found.contradiction[place]) if contradicted else None,
            "contradiction_divergence": float(found.contradiction_divergence[place]) if contradicted else None,
        }


def _calibrated(found: Triage, place: int) -> dict[str, float | None]:
    report = found.report
    if report is None:
        return dict.fromkeys(("text_confidence", "fits_about", "typicality"))
    confidence = report.text_confidence
    return {
        "text_confidence": None if confidence is None else float(confidence[place]),
        "fits_about": float(report.fits_about[place]),
        "typicality": float(report.typicality[place]),
    }


def write_report(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Writes JSON Lines or parquet, by the ending of the name; nothing is there before all of it is."""
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        if file.suffix == ".jsonl":
            with unfinished.open("w", encoding="utf-8") as opened:
                for row in rows:
                    opened.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            with pq.ParquetWriter(unfinished, SCHEMA) as writer:
                some: list[dict[str, Any]] = []
                for row in rows:
                    some.append(row)
                    if len(some) == ROWS_PER_GROUP:
                        writer.write_table(pa.Table.from_pylist(some, SCHEMA))
                        some = []
                writer.write_table(pa.Table.from_pylist(some, SCHEMA))
        move_into_place(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def summary(captions: Captions, found: Triage) -> str:
    """What was found, in a few lines."""
    order = np.argsort(found.concentration, kind="stable")
    lines = []
    for name, places in (("Vaguest", order[:EXAMPLES]), ("Most specific", order[::-1][:EXAMPLES])):
        lines.append(f"{name}:")
        lines += [f"  {1 / found.concentration[place]:.4f}  {captions.texts[place]}" for place in places]
    has_duplicate = found.duplicates.nearest >= 0
    groups = len(np.unique(found.duplicates.group[has_duplicate]))
    lines.append(f"Near-duplicates: {has_duplicate.sum()} captions in {groups} group{'s' * (groups != 1)}")
    if found.contradiction_threshold is None:
        lines.append("Contradictions: not looked for, since no two captions share an image, or all do")
    else:
        lines.append(
            f"Contradictions: {(found.contradiction >= 0).sum()} captions differ from another of their image by more "
            f"than {found.contradiction_threshold:.3g} nats in direction"
        )
    if found.report is not None:
        unlike = int((found.report.typicality < UNLIKE).sum())
        lines.append(f"{unlike} captions are unlike the model's training captions (p < {UNLIKE}): judge them by eye")
    if found.cut.any():
        lines.append(f"{found.cut.sum()} captions are longer than the model's context, and their ends were not judged")
    return "\n".join(lines)
