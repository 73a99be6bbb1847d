"""Checks of input that know nothing of models."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def check_strings(values: Iterable[Any], name: str) -> None:
    """Raises `TypeError` for what is no string, with the name of the values and the number of the first such one."""
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"{name} {number} is of type {type(value).__name__}: pass a string.")


def check_is_there(name_or_path: str) -> None:
    """
    Raises `FileNotFoundError` for what can only be a path, and where nothing is: a name on the Hub is `name` or
    `organisation/name`.
    """
    is_path = name_or_path.count("/") > 1 or name_or_path[:1] in ("", ".", "/", "~")
    if is_path and not (name_or_path and Path(name_or_path).exists()):
        raise FileNotFoundError(
            f"There is no folder {name_or_path!r}: give that of a checkpoint, or a name on the Hub."
        )
