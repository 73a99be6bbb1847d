"""Checks of input that know nothing of models."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any


def check_strings(values: Iterable[Any], name: str) -> None:
    """Raises `TypeError` for what is no string, with the name of the values and the number of the first such one."""
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"{name} {number} is of type {type(value).__name__}: pass a string.")


def is_missing_path(value: str, suffixes: Collection[str] = ()) -> bool:
    """
    Whether a value can only be a path, and nothing is there. A name on the Hub is `name` or `organisation/name`, and
    has none of these suffixes.
    """
    is_path = value.count("/") > 1 or value[:1] in ("", ".", "/", "~") or Path(value).suffix.lower() in suffixes
    return is_path and not (value and Path(value).exists())


def check_is_there(name_or_path: str) -> None:
    """Raises `FileNotFoundError` for what can only be the path of a checkpoint, where nothing is."""
    if is_missing_path(name_or_path):
        raise FileNotFoundError(f"There is no folder {name_or_path!r}: give that of a checkpoint, or a Hub name.")
