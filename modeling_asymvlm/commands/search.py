"""Finds the images of a gallery for texts, with their posteriors.

    asymvlm search "a small red circle"                                   # in the example's test pictures
    asymvlm search "a dog on a beach" --model outputs/mine --images photos/ --save_index photos.index
    asymvlm search "a dog" "two dogs" --model outputs/mine --index photos.index -k 3 --json

The gallery is a split of the features that a model was trained from, the pictures in a folder at any depth, or an
index that was saved before. A model with a calibration tells how probable it is that the first image is right, and
that the gallery holds an answer at all.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoProcessor

from ..model.modeling_asymvlm import AsymVLMModel
from ..search.image_index import ImageIndex
from ..search.index_search import SearchResults
from ..texts.encoding import encode_texts
from ..training.arguments import AsymVLMTrainingArguments
from ..utils.checks import check_is_there
from .parser import CommandParser
from .search_gallery import calibration_of, folder_index, split_index


def command_parser() -> CommandParser:
    """The flags of the command."""
    parser = CommandParser("search", __doc__ or "")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to look for; may be left off with --save_index")
    parser.add_argument(
        "--model",
        default=AsymVLMTrainingArguments.output_dir,
        help="trained model with its backbone: a folder, or a repository on the Hub",
    )
    gallery = parser.add_mutually_exclusive_group()
    gallery.add_argument("--embeddings", help="store of features; default: embeddings/ in the folder of the model")
    gallery.add_argument("--images", type=Path, help="folder of pictures, which are embedded first")
    gallery.add_argument("--index", type=Path, help="index that --save_index wrote with this model")
    parser.add_argument("--split", default="test", help="of the store")
    parser.add_argument("--save_index", type=Path, help="folder to keep the index in, for --index")
    parser.add_argument("-k", type=int, default=5, help="images for each text, at most")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures in the backbone at a time")
    parser.add_argument("--device", default="cpu", help="where the backbone runs, such as cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each text, and nothing else")
    return parser


def check_arguments(parsed: argparse.Namespace) -> None:
    """Raises `ValueError` for values out of range, and where there is nothing to do."""
    if not parsed.texts and parsed.save_index is None:
        raise ValueError("there is nothing to look for: pass a text, or --save_index to make an index alone.")
    if parsed.save_index is not None and parsed.index is not None:
        raise ValueError("--save_index writes what --embeddings or --images give, and --index is there already.")
    for name in ("k", "batch_size"):
        if getattr(parsed, name) < 1:
            raise ValueError(
                f"{'-k' if name == 'k' else '--batch_size'} must be at least 1, got {getattr(parsed, name)}."
            )


def open_index(parsed: argparse.Namespace, model: AsymVLMModel, processor: Any) -> ImageIndex:
    """The gallery that the arguments name. Raises `ValueError` or `OSError` for what is not there or does not fit."""
    calibration = calibration_of(parsed.model, model)
    if parsed.index is not None:
        return ImageIndex.load(parsed.index, model=model, calibration=calibration)
    if parsed.images is not None:
        index = folder_index(model, processor, parsed.images, calibration=calibration, batch_size=parsed.batch_size)
    else:
        store = parsed.embeddings or Path(parsed.model) / "embeddings"
        index = split_index(model, store, parsed.split, calibration=calibration)
    if parsed.save_index is not None:
        index.save(parsed.save_index)
    return index


def record(text: str, found: SearchResults, row: int) -> dict[str, Any]:
    """What was found for a text; null where the model has no calibration, or does not trust it."""

    def of_text(values: np.ndarray | None) -> float | None:
        return None if values is None or not np.isfinite(values[row]) else float(values[row])

    assert found.log_posterior is not None
    images = [
        {"image": label, "score": float(score), "posterior": float(np.exp(log_posterior))}
        for label, score, log_posterior in zip(
            found.labels[row], found.scores[row], found.log_posterior[row], strict=True
        )
    ]
    uncertainty = of_text(found.uncertainty[:, 0])
    confidences = {"confidence": of_text(found.confidence), "presence": of_text(found.presence)}
    return {"text": text, "uncertainty": uncertainty, **confidences, "images": images}


def describe(answer: dict[str, Any]) -> str:
    """A record as lines to read."""
    known = [f"1/kappa {answer['uncertainty']:.4f}"] if answer["uncertainty"] is not None else []
    for name, sentence in (("presence", "an answer is here"), ("confidence", "if so, the first is right")):
        if answer[name] is not None:
            known.append(f"{sentence}: {100 * answer[name]:.0f} %")
    lines = [f"{answer['text']}  ({'; '.join(known)})" if known else answer["text"]]
    lines += [f"  {100 * found['posterior']:5.1f} %  {found['image']}" for found in answer["images"]]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The command; returns 0, and leaves with exit code 2 for a model, a gallery or arguments that are wrong."""
    parser = command_parser()
    parsed = parser.parse_args(arguments)
    with parser.failing(ValueError, OSError, RuntimeError):
        check_arguments(parsed)
        check_is_there(parsed.model)
        model = AsymVLMModel.from_pretrained(parsed.model).eval().to(parsed.device)
        if model.vlm is None:
            raise ValueError(
                f"{parsed.model!r} is a head without a backbone, which reads no texts: name a whole model."
            )
        processor = AutoProcessor.from_pretrained(parsed.model)
        index = open_index(parsed, model, processor)
        texts = parsed.texts
        found = None
        if texts:
            queries = encode_texts(model, processor, texts)
            found = index.search(queries, k=min(parsed.k, len(index)), posterior=True)
    for row, text in enumerate(texts):
        assert found is not None
        answer = record(text, found, row)
        print(json.dumps(answer) if parsed.json else describe(answer))
    if parsed.save_index is not None and not parsed.json:
        print(f"The index of {len(index):,} images is in {parsed.save_index}.")
    return 0
