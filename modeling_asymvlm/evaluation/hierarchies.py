"""Files of caption hierarchies, from general to specific."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..utils.json_files import parse_json, read_json


SEPARATOR = "=>"


@dataclass(frozen=True)
class Hierarchies:
    """Captions with their places in hierarchies; see [`read_hierarchies`].

    Attributes:
        captions (`list[str]`): the texts, those of a hierarchy one after the other.
        level (`int64`, shape `(captions,)`): 0 is the most general.
        group (`int64`, shape `(captions,)`): number of the hierarchy in the file.
    """

    captions: list[str]
    level: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]


def read_hierarchies(path: str | Path) -> Hierarchies:
    """
    Reads lists of captions that go from general to specific.

    Args:
        path (`str` or `Path`): `.jsonl` (an entry a line), `.json` (a list of entries) or `.csv` (with a header). An
            entry is a list of texts, or one text with `=>` between them, on its own or as the field `captions`: the
            files of [HierarCaps](https://github.com/TAU-VAILab/hierarcaps) are read as they are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of file, no entries, or an entry that is no list of two or more texts, with its
            number.
    """
    file = Path(path)
    captions: list[str] = []
    level: list[int] = []
    group: list[int] = []
    number = -1
    for number, entry in enumerate(_entries(file)):
        texts = entry.get("captions") if isinstance(entry, dict) else entry
        if isinstance(texts, str):
            texts = texts.split(SEPARATOR)
        if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(x, str) and x.strip() for x in texts):
            raise ValueError(
                f"{str(file)!r}: entry {number} holds {texts!r}; it must hold two texts or more, from general to "
                "specific, as a list or with '=>' between them, on their own or as the field `captions`."
            )
        captions += [text.strip() for text in texts]
        level += range(len(texts))
        group += [number] * len(texts)
    if number < 0:
        raise ValueError(f"{str(file)!r} holds no hierarchies.")
    return Hierarchies(captions, np.array(level), np.array(group))


def _entries(file: Path) -> Iterable[Any]:
    if file.suffix not in (".json", ".jsonl", ".csv"):
        raise ValueError(f"{str(file)!r} is no hierarchy file; its name must end in .jsonl, .json or .csv.")
    if file.suffix == ".json":
        entries = read_json(file)
    else:
        with file.open(encoding="utf-8", newline="") as lines:
            if file.suffix == ".csv":
                yield from csv.DictReader(lines)
                return
            entries = [
                parse_json(row, f"{str(file)!r} is not JSONL: line {number}", remedy="Correct it.")
                for number, row in enumerate(lines, 1)
                if row.strip()
            ]
    if not isinstance(entries, list):
        raise ValueError(f"{str(file)!r} must hold a list of hierarchies, but holds a {type(entries).__name__}.")
    yield from entries
