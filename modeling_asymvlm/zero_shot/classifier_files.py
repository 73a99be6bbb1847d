"""The folder of a saved zero-shot classifier.

classifier.json        the number of prompts of each class, options, fingerprint of the model's head; checksums
prompts.safetensors    prompt_embeds, natural parameters of the prompts of all classes, in the order of the classes
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from ..utils.file_bundles import BundleKind, opened_bundle, writing_bundle


PROMPTS = "prompts.safetensors"
CLASSIFIER = BundleKind("zero-shot classifier", "classifier.json", (PROMPTS,), 1, "Make and save it again.")
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
        OSError: if the disk is full or refuses.
    """
    content = {"classes": list(classes.items()), "options": options, "model": model}
    with writing_bundle(path, CLASSIFIER, content) as folder:
        save_file({"prompt_embeds": prompt_embeds.cpu().contiguous()}, folder / PROMPTS)


def read_classifier(path: Path) -> SavedClassifier:
    """
    What [`write_classifier`] wrote.

    Raises:
        FileNotFoundError: if there is no classifier at `path`.
        ValueError: if it is of another format, or a file is damaged or missing.
        OSError: if a file may not be read.
    """
    try:
        with opened_bundle(path, CLASSIFIER) as bundle:
            manifest = bundle.content
            classes, options = dict(manifest["classes"]), manifest["options"]
            if set(options) != OPTIONS:
                raise bundle.damaged(f"its options are {sorted(options)}")
            parts = load(bundle.verified(PROMPTS).read())["prompt_embeds"].split(list(classes.values()))
            return SavedClassifier(dict(zip(classes, parts, strict=True)), options, manifest["model"])
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"The zero-shot classifier at {str(path)!r} is incomplete, damaged or of another format ({error}): make "
            "and save it again."
        ) from error
