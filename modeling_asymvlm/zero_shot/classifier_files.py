"""The folder of a saved zero-shot classifier.

classifier.json        format, the number of prompts of each class, options, fingerprint of the model's head
prompts.safetensors    prompt_embeds, natural parameters of the prompts of all classes, in the order of the classes
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..utils.durable_files import check_replaceable, writing_folder
from ..utils.json_files import read_json, write_json


MANIFEST, PROMPTS = "classifier.json", "prompts.safetensors"
FORMAT = 1
OPTIONS = {"distribution", "normalizer", "logit_scale", "fusion", "prompt_correlation"}


class SavedClassifier(NamedTuple):
    """
    What the folder of a classifier holds.

    Attributes:
        prompt_embeds (`dict[str, torch.Tensor]`): for each class the natural parameters of its prompts.
        options (`dict`): what [`OPTIONS`] names.
        model (`str`, *optional*): fingerprint of the head that embedded the prompts.
    """

    prompt_embeds: dict[str, torch.Tensor]
    options: dict[str, Any]
    model: str | None


def write_classifier(
    path: Path, prompt_embeds: torch.Tensor, *, classes: dict[str, int], options: dict[str, Any], model: str | None
) -> None:
    """
    Writes a folder, in place of a classifier that was saved at `path` before. It is written beside it first: an error
    or an interruption leaves the old one.

    Raises:
        FileExistsError: if anything but a classifier or an empty folder is at `path`.
    """
    check_replaceable(path, MANIFEST, (MANIFEST, PROMPTS))
    with writing_folder(path) as folder:
        save_file({"prompt_embeds": prompt_embeds.cpu().contiguous()}, folder / PROMPTS)
        manifest = {"format": FORMAT, "classes": list(classes.items()), "options": options, "model": model}
        write_json(folder / MANIFEST, manifest)


def read_classifier(path: Path) -> SavedClassifier:
    """
    What [`write_classifier`] wrote.

    Raises:
        FileNotFoundError: if there is no classifier at `path`.
        ValueError: if it is of another format, or its files are damaged or do not belong together.
    """
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(f"There is no zero-shot classifier at {str(path)!r}: it has no {MANIFEST}.")
    try:
        manifest = read_json(path / MANIFEST)
        classes, options, format_ = dict(manifest["classes"]), manifest["options"], manifest["format"]
        if format_ != FORMAT or set(options) != OPTIONS:
            raise ValueError(f"format {format_} with {sorted(options)}")
        parts = load_file(path / PROMPTS)["prompt_embeds"].split(list(classes.values()))
        return SavedClassifier(dict(zip(classes, parts, strict=True)), options, manifest["model"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"The zero-shot classifier at {str(path)!r} is incomplete, damaged or of another format ({error}): make "
            "and save it again."
        ) from error
