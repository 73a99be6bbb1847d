"""Checks of input that know nothing of models."""

from collections.abc import Iterable
from typing import Any


def check_strings(values: Iterable[Any], name: str) -> None:
    """Raises `TypeError` for what is no string, with the name of the values and the number of the first such one."""
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"{name} {number} is of type {type(value).__name__}: pass a string.")
