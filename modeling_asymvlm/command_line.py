"""Arguments of a command: flags, or one file that holds them all."""

import json
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and the examples as they are written."""


class CommandParser(HfArgumentParser):
    """An `HfArgumentParser` whose errors are one sentence, without two hundred lines of usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"train_asymvlm.py: error: {message} (--help lists all arguments)\n")


def flags_in_file(file: Path) -> list[str]:
    """The flags that a JSON or YAML file stands for. Raises `ValueError` unless it maps arguments to values."""
    text = file.read_text(encoding="utf-8")
    values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a mapping from argument to value.")
    flags: list[str] = []
    for name, value in values.items():
        if value is not None:
            flags.append(f"--{name}")
            flags += [str(item) for item in value] if isinstance(value, list) else [_flag_value(name, value)]
    return flags


def _flag_value(name: str, value: Any) -> str:
    if value is False and name.endswith("_strategy"):
        return "no"  # which YAML reads as false
    return json.dumps(value) if isinstance(value, dict) else str(value)
