"""The results of a run on disk: JSON, which knows no NaN."""

import math
from pathlib import Path
from typing import Any

from ..utils.json_files import read_json, write_json


RESULTS_FILE = "all_results.json"


def read_results(file: str | Path) -> dict[str, Any]:
    """
    The results that a card is made from.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not JSON, or holds no test results.
    """
    results = read_json(file, remedy="Make it anew by training or evaluating.")
    test = results.get("test") if isinstance(results, dict) else None
    if not isinstance(test, dict) or not test.get("retrieval"):
        raise ValueError(f"{str(file)!r} holds no test results: make it anew by training or evaluating.")
    return results


def write_results(file: str | Path, results: dict[str, Any]) -> None:
    """Writes results as [`read_results`] takes them: JSON, in which undefined figures are null."""
    write_json(file, _without_nan(results), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(value: Any) -> Any:
    """Results as they are read, with NaN for every null: an undefined figure."""
    if isinstance(value, dict):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value
