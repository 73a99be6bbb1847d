"""What stands beneath the tables: figures that the data do not allow, and notes on those that are bounds."""

from typing import Any

from benchmarks.comparison.baselines.attempts import errors


def remarks(runs: dict[str, list[dict[str, Any]]], labels: dict[str, str]) -> list[str]:
    """One line for each failed figure and each note, with the runs that it is of."""
    of_text: dict[str, list[str]] = {}
    for method, records in runs.items():
        for number, record in enumerate(records):
            name = labels[method] if len(records) == 1 else f"{labels[method]}, run {number}"
            for said in dict.fromkeys([*record.get("notes", []), *errors(record)]):
                of_text.setdefault(said, []).append(name)
    return [f"{said} ({'; '.join(names)})" for said, names in of_text.items()]
