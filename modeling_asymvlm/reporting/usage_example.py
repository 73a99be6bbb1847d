"""The example in a model card: a program that loads the model, on captions of its own data, and its execution."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


# From vague to specific: the ranks, as shares of all captions, near which the texts of an example lie.
QUANTILES = (0.95, 0.65, 0.35, 0.05)
NEAR = 0.025
LONGEST_TEXT = 200  # characters

# Runs the program in its first argument and writes what that prints, but not what libraries below Python print, to the
# file in its second.
WITHOUT_THIS_PACKAGE = """import contextlib, pathlib, sys
sys.modules["modeling_asymvlm"] = None
program, printed = map(pathlib.Path, sys.argv[1:])
with printed.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
    exec(compile(program.read_text(encoding="utf-8"), "<example>", "exec"), {})
"""


def choose_texts(captions: Sequence[str], uncertainty: Sequence[float] | np.ndarray) -> list[str]:
    """
    Up to four captions from vague to specific, for an example: of those whose uncertainty lies near each of four
    quantiles, the shortest; the same ones for the same captions in any order.

    Args:
        captions (`Sequence[str]`):
            Those of a split. Left out are repetitions and what would not stand on a line of a card: more than 200
            characters, line breaks and other characters that do not print, and backticks.
        uncertainty (`Sequence[float]` of length `len(captions)`): 1 / kappa of each.
    """
    of_text = {
        text: value
        for value, text in sorted(zip(uncertainty, captions, strict=True))
        if len(text) <= LONGEST_TEXT and text.isprintable() and "`" not in text
    }
    ascending = sorted(of_text, key=lambda text: (of_text[text], text))
    reach = int(NEAR * len(ascending))
    chosen: list[str] = []
    for quantile in QUANTILES:
        rank = round(quantile * (len(ascending) - 1))
        near = ascending[max(rank - reach, 0) : rank + reach + 1]
        chosen += sorted((text for text in near if text not in chosen), key=lambda text: (len(text), text))[:1]
    return chosen


def usage_example(facts: dict[str, Any], location: str, *, texts: Sequence[str] = (), published: bool) -> str:
    """
    A program that loads the model and prints what it says of a few texts, or where none are known the shape of what
    it gives.

    Args:
        facts (`dict`): of [`~model_card.model_facts`].
        location (`str`): repository or folder of the model.
        texts (`Sequence[str]`, *optional*): captions of the data, as [`choose_texts`] chooses them.
        published (`bool`): whether its code lies there too, so that this package need not be installed.
    """
    trust = ", trust_remote_code=True" if published or facts.get("backbone_code") else ""
    lines = [
        "import torch",
        f"from transformers import AutoModel{'' if facts['takes_features'] else ', AutoProcessor'}",
    ]
    if not published:
        lines += ["", "import modeling_asymvlm  # noqa: F401, registers AsymVLM with AutoModel"]
    lines += ["", f"model = AutoModel.from_pretrained({json.dumps(location)}{trust})"]
    printed = ["print(output.text_embeds.shape)"]
    if facts["takes_features"]:
        lines += [
            "# Raw text features of the backbone that the head was trained on; random numbers stand for them here.",
            f"text_features = torch.randn(2, {facts['projection_dim']})",
            "with torch.no_grad():",
            "    output = model(text_features=text_features)",
        ]
        return "\n".join(lines + printed) + "\n"
    lines += [f"processor = AutoProcessor.from_pretrained({json.dumps(location)}{trust})"]
    if texts:
        lines += ["texts = [  # captions of the validation split, from vague to specific"]
        # not as ASCII: a pair of JSON's surrogates is no character in Python
        lines += [f"    {json.dumps(text, ensure_ascii=False)}," for text in texts]
        lines += ["]"]
    else:
        lines += ['texts = ["one text", "another text"]  # put yours here']
    lines += [
        'inputs = processor(text=texts, padding=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    output = model(**inputs)",
    ]
    if texts and facts["distribution"] != "deterministic":
        printed = [
            "for text, uncertainty in zip(texts, 1 / output.concentration):",
            '    print(f"{uncertainty:.4f}  {text}")',
        ]
    return "\n".join(lines + printed) + "\n"


def run_example(example: str) -> str:
    """Executes an example in this process and returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "<example>", "exec"), {})
    return printed.getvalue()


def run_example_isolated(example: str) -> str:
    """
    Executes an example in a new process that cannot import this package, and returns what it prints.

    Raises:
        ValueError: if it fails, with the last line of its error.
    """
    with tempfile.TemporaryDirectory() as folder:
        program, printed = Path(folder, "example.txt"), Path(folder, "printed.txt")
        program.write_text(example, encoding="utf-8")
        result = subprocess.run(
            [sys.executable, "-c", WITHOUT_THIS_PACKAGE, program, printed],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "HF_MODULES_CACHE": str(Path(folder, "modules"))},
            cwd=folder,
        )
        if result.returncode != 0:
            reason = "".join(result.stderr.strip().splitlines()[-1:])
            raise ValueError(f"the example of the card fails where this package is not installed: {reason}")
        return printed.read_text(encoding="utf-8")
