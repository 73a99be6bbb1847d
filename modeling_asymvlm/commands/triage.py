"""Ranks captions from vague to specific, and flags near-duplicates and captions that contradict one another.

    asymvlm triage captions.jsonl --model outputs/asymvlm --output report.jsonl
    asymvlm triage annotations/ --model outputs/asymvlm --output report.parquet

The captions are those of a JSON, JSON Lines, CSV, TSV or parquet file with a column caption, captions or text, and
perhaps image_id, or of any other layout that training reads. The report has a line for each caption, the vaguest
first:

rank, row, caption   place from 0 on, row of the file, text
image_id             null where the data do not tell which captions share an image
uncertainty          1/kappa; concentration is kappa, and percentile the share in per cent of the texts of the
                     model's held-out captions that are less uncertain, null if it has no calibration
text_confidence      how often a first result for such a caption is right, fits_about how many of the reference
                     pictures it fits, typicality its p-value among held-out captions; null without a calibration, and
                     the first also where it is not to be trusted
cut                  whether the caption is longer than the model's context, so that its end is not judged
duplicate_group      captions of one group say nearly the same: the lowest place in the data of its captions; null
                     where there is no other. duplicate_place is the place of the nearest, duplicate_divergence how far
                     it is: (KL(a‖b) + KL(b‖a)) / (KL(a‖uniform) + KL(b‖uniform)), 0 for the same
contradiction_place  place of the caption of the same image from which the direction differs most, null unless by more
                     than --contradiction_quantile of pairs of different images do; contradiction_divergence, in nats

A place is the number of the caption in the data, from 0 on; where a row has one caption it is the row.
"""

import argparse
from pathlib import Path

import datasets
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from ..calibration.calibration import Calibration
from ..model.configuration_asymvlm import AsymVLMConfig
from ..model.modeling_asymvlm import AsymVLMModel
from ..pairs.captions import read_captions
from ..pairs.layouts import DATA_SUFFIXES
from ..reporting.triage_report import REPORT_SUFFIXES, report_rows, summary, write_report
from ..texts.processor_check import check_processor
from ..texts.triage import triage
from ..utils.checks import is_missing_path
from .parser import CommandParser


def command_parser() -> CommandParser:
    """The flags of the command."""
    parser = CommandParser("triage", __doc__ or "")
    parser.add_argument("captions", help="file or folder of captions, or a data set on the Hub")
    parser.add_argument("--model", required=True, help="trained model: a folder, or a repository on the Hub")
    parser.add_argument("--output", type=Path, help="report to write, .jsonl or .parquet; default: a summary alone")
    parser.add_argument("--caption_column", help="column of a caption or a list of them")
    parser.add_argument("--image_id_column", help="column that tells which captions share an image")
    parser.add_argument(
        "--image_column", help="column of the images, of pairs that are no single table; default: image"
    )
    parser.add_argument("--image_folder", help="folder of the images of such pairs; default: beside the captions")
    parser.add_argument(
        "--duplicate_divergence", type=float, default=0.05, help="largest relative divergence of near-duplicates"
    )
    parser.add_argument(
        "--contradiction_quantile",
        type=float,
        default=0.5,
        help="captions of one image contradict each other if their directions are further apart than this share of "
        "pairs of different images",
    )
    parser.add_argument("--batch_size", type=int, default=256, help="captions in the backbone at a time")
    parser.add_argument("--device", default="cpu", help="where the model runs, such as cuda")
    return parser


def check_arguments(parsed: argparse.Namespace) -> None:
    """Raises `ValueError` for a value out of range, and for a report that cannot be written."""
    for name, value in (("", parsed.captions), ("--model: ", parsed.model)):
        if is_missing_path(value, DATA_SUFFIXES):
            raise ValueError(f"{name}There is no file or folder {value!r}.")
    if parsed.output is not None:
        if parsed.output.suffix not in REPORT_SUFFIXES:
            raise ValueError(f"--output {str(parsed.output)!r} must end in .jsonl or .parquet.")
        if parsed.output.exists():
            raise ValueError(f"--output {str(parsed.output)!r} exists already: name another file.")
        if not parsed.output.absolute().parent.is_dir():
            raise ValueError(f"--output: there is no folder {str(parsed.output.parent)!r}.")
    if not 0 <= parsed.duplicate_divergence < 2:
        raise ValueError(f"--duplicate_divergence must be at least 0 and below 2, got {parsed.duplicate_divergence}.")
    if not 0 <= parsed.contradiction_quantile <= 1:
        raise ValueError(f"--contradiction_quantile must lie in [0, 1], got {parsed.contradiction_quantile}.")
    if parsed.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {parsed.batch_size}.")


def judge(parsed: argparse.Namespace) -> None:
    """Reads the captions, judges them, writes the report and prints a summary."""
    captions = read_captions(
        parsed.captions,
        caption_column=parsed.caption_column,
        image_id_column=parsed.image_id_column,
        image_column=parsed.image_column,
        image_folder=parsed.image_folder,
    )
    if not isinstance(AutoConfig.from_pretrained(parsed.model), AsymVLMConfig):
        raise ValueError(f"{parsed.model!r} is a backbone, or another model: pass a trained AsymVLM.")
    model = AsymVLMModel.from_pretrained(parsed.model).to(torch.device(parsed.device))
    try:
        calibration = Calibration.from_pretrained(parsed.model, model=model)
    except FileNotFoundError:
        calibration = None
    tokenizer = AutoTokenizer.from_pretrained(parsed.model)
    check_processor(model, tokenizer)
    found = triage(
        model,
        tokenizer,
        captions.texts,
        captions.image_ids,
        duplicate_divergence=parsed.duplicate_divergence,
        contradiction_quantile=parsed.contradiction_quantile,
        batch_size=parsed.batch_size,
        progress=True,
        calibration=calibration,
    )
    if parsed.output is not None:
        write_report(parsed.output, report_rows(captions, found, calibration))
    print(f"{len(captions.texts)} captions\n{summary(captions, found)}")


def main(arguments: list[str]) -> int:
    """The command; returns 0, and leaves with exit code 2 for captions, a model or arguments that are wrong."""
    parser = command_parser()
    parsed = parser.parse_args(arguments)
    with parser.failing(ValueError):
        check_arguments(parsed)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with parser.failing(ValueError, OSError, RuntimeError):
        judge(parsed)
    if parsed.output is not None:
        print(f"The report is in {parsed.output}.")
    return 0
