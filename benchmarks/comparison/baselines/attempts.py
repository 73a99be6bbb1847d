"""Figures that cannot be computed, which are named in their cells and lose nothing else of a table."""

from collections.abc import Callable, Iterator
from typing import Any


ERROR = "error"


def attempt(figures: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures, or `{"error": message}` where data do not allow them (`ValueError`)."""
    try:
        return figures()
    except ValueError as error:
        return {ERROR: str(error)}


def failed(part: Any) -> bool:
    """Whether a part of a record is a failed one."""
    return isinstance(part, dict) and ERROR in part


def lookup(record: Any, *keys: str) -> Any:
    """What stands in a record under these keys: `None` where nothing does, the failed part where it failed."""
    for key in keys:
        if failed(record):
            return record
        record = record.get(key)
        if record is None:
            return None
    return record


def errors(record: Any, path: str = "") -> Iterator[str]:
    """Every failed part of a record, by its path, with its message."""
    if failed(record):
        yield f"{path}: {record[ERROR]}"
    elif isinstance(record, dict):
        for key, value in record.items():
            yield from errors(value, f"{path}, {key}" if path else key)
