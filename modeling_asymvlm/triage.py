"""Ranks captions from vague to specific, and flags near-duplicates and captions that contradict one another.

    python -m modeling_asymvlm.triage captions.jsonl --model outputs/asymvlm --output report.jsonl
    python -m modeling_asymvlm.triage annotations/ --model outputs/asymvlm --output report.parquet

The captions are those of a JSON, JSON Lines, CSV or parquet file with a column caption, captions or text, and perhaps
image_id, or of any other layout that train_asymvlm.py reads. The report has a line for each caption, the vaguest
first:

rank, row, caption   place from 0 on, row of the file, text
image_id             null where the data do not tell which captions share an image
uncertainty          1/kappa; concentration is kappa, and percentile the share in per cent of the texts of the
                     model's reference corpus that are less uncertain, null if it has none
cut                  whether the caption is longer than the model's context, so that its end is not judged
duplicate_group      captions of one group say nearly the same: the lowest place in the data of its captions; null
                     where there is no other. duplicate_place is the place of the nearest, duplicate_divergence how far
                     it is: (KL(a‖b) + KL(b‖a)) / (KL(a‖uniform) + KL(b‖uniform)), 0 for the same
contradiction_place  place of the caption of the same image from which the direction differs most, null unless by more
                     than --contradiction_quantile of pairs of different images do; contradiction_divergence, in nats

A place is the number of the caption in the data, from 0 on; where a row has one caption it is the row.
"""

import argparse
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from .caption_triage import Triage, triage
from .configuration_asymvlm import AsymVLMConfig
from .durable_files import move_into_place
from .modeling_asymvlm import AsymVLMModel
from .readers.captions import Captions, read_captions
from .reference_uncertainty import UncertaintyReference


REPORT_SUFFIXES = (".jsonl", ".parquet")
ROWS_AT_A_TIME = 65536
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
        "cut": pa.bool_(),
        "duplicate_group": pa.int64(),
        "duplicate_place": pa.int64(),
        "duplicate_divergence": pa.float64(),
        "contradiction_place": pa.int64(),
        "contradiction_divergence": pa.float64(),
    }
)


def report_rows(captions: Captions, found: Triage, reference: UncertaintyReference | None) -> Iterator[dict[str, Any]]:
    """The lines of the report, the vaguest caption first; see the top of this file."""
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
            "cut": bool(found.cut[place]),
            "duplicate_group": int(found.duplicates.group[place]) if has_duplicate else None,
            "duplicate_place": int(found.duplicates.nearest[place]) if has_duplicate else None,
            "duplicate_divergence": float(found.duplicates.divergence[place]) if has_duplicate else None,
            "contradiction_place": int(found.contradiction[place]) if contradicted else None,
            "contradiction_divergence": float(found.contradiction_divergence[place]) if contradicted else None,
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
                    if len(some) == ROWS_AT_A_TIME:
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
    if found.cut.any():
        lines.append(f"{found.cut.sum()} captions are longer than the model's context, and their ends were not judged")
    return "\n".join(lines)


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"triage: error: {' '.join(message.split())}\n")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = CommandParser(
        prog="python -m modeling_asymvlm.triage",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("captions", help="file or folder of captions, or a data set on the Hub")
    parser.add_argument("--model", required=True, help="trained model: a folder, or a repository on the Hub")
    parser.add_argument("--output", type=Path, help="report to write, .jsonl or .parquet; default: a summary alone")
    parser.add_argument("--caption_column", help="column of a caption or a list of them")
    parser.add_argument("--image_id_column", help="column that tells which captions share an image")
    parser.add_argument(
        "--duplicate_divergence",
        type=float,
        default=0.05,
        help="largest relative divergence of near-duplicates, default 0.05",
    )
    parser.add_argument(
        "--contradiction_quantile",
        type=float,
        default=0.5,
        help="captions of one image contradict each other if their directions are further apart than this share of "
        "pairs of different images, default 0.5",
    )
    parser.add_argument("--batch_size", type=int, default=256, help="captions in the backbone at a time, default 256")
    parser.add_argument("--device", default="cpu", help="where the model runs, such as cuda; default cpu")
    parsed = parser.parse_args(arguments)
    if parsed.output is not None and parsed.output.suffix not in REPORT_SUFFIXES:
        parser.error(f"--output {str(parsed.output)!r} must end in .jsonl or .parquet.")
    if parsed.output is not None and parsed.output.exists():
        parser.error(f"--output {str(parsed.output)!r} exists already: name another file.")
    if parsed.output is not None and not parsed.output.absolute().parent.is_dir():
        parser.error(f"--output: there is no folder {str(parsed.output.parent)!r}.")
    if not 0 <= parsed.duplicate_divergence < 2:
        parser.error(f"--duplicate_divergence must be at least 0 and below 2, got {parsed.duplicate_divergence}.")
    if not 0 <= parsed.contradiction_quantile <= 1:
        parser.error(f"--contradiction_quantile must lie in [0, 1], got {parsed.contradiction_quantile}.")
    if parsed.batch_size < 1:
        parser.error(f"--batch_size must be at least 1, got {parsed.batch_size}.")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 for captions, a model or arguments that are wrong."""
    parsed = parse_arguments(arguments)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        captions = read_captions(
            parsed.captions, caption_column=parsed.caption_column, image_id_column=parsed.image_id_column
        )
        if not isinstance(AutoConfig.from_pretrained(parsed.model), AsymVLMConfig):
            raise ValueError(f"{parsed.model!r} is a backbone, or another model: pass a trained AsymVLM.")
        model = AsymVLMModel.from_pretrained(parsed.model).to(torch.device(parsed.device))
        try:
            reference = UncertaintyReference.from_pretrained(parsed.model)
            reference.check_head(model)
        except FileNotFoundError:
            reference = None
        found = triage(
            model,
            AutoTokenizer.from_pretrained(parsed.model),
            captions.texts,
            captions.image_ids,
            duplicate_divergence=parsed.duplicate_divergence,
            contradiction_quantile=parsed.contradiction_quantile,
            batch_size=parsed.batch_size,
            progress=True,
        )
        if parsed.output is not None:
            write_report(parsed.output, report_rows(captions, found, reference))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"triage: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{len(captions.texts)} captions\n{summary(captions, found)}")
    if parsed.output is not None:
        print(f"The report is in {parsed.output}.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ntriage: interrupted; no report was written.", file=sys.stderr)
        sys.exit(130)
