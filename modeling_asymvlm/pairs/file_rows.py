"""Rows of table files with the text that stands in them: no type is guessed, and nothing is taken for missing."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .file_text import json_values, text_lines


FILE_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
DELIMITERS = {"csv": ",", "tsv": "\t"}
ROWS_PER_READ = 1000


def file_format(file: Path) -> str | None:
    """The format of a table file, one of the values of `FILE_FORMATS`; `None` for a file of another kind."""
    return FILE_FORMATS.get(file.suffix.lower())


def column_names(file: Path) -> list[str]:
    """The columns of a table file: of its header or schema, or those of its first object in JSON."""
    if file_format(file) == "parquet":
        return _parquet(file).schema_arrow.names
    if file_format(file) == "json":
        return list(next((row for _, row in rows_of(file)), {}))
    return next(separated_lines(file, DELIMITERS[str(file_format(file))]))[1]


def rows_of(file: Path, columns: list[str] | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """
    The rows of a table file one after another, and where each stands, for messages.

    Args:
        file (`Path`): JSON, JSON Lines, CSV, TSV or parquet, told by its suffix.
        columns (`list[str]`, *optional*): those that are read of a parquet file, by default all.

    Raises:
        ValueError: for what cannot be read, such as a row with more fields than the header has.
    """
    if file_format(file) == "parquet":
        yield from _parquet_rows(file, columns)
    elif file_format(file) == "json":
        for number, row in enumerate(json_values(file)):
            if not isinstance(row, dict):
                raise ValueError(
                    f"{file} cannot be read: row {number} must be an object with a value for each column, but is "
                    f"{type(row).__name__}."
                )
            yield f"{file}: row {number}", row
    else:
        yield from _separated_rows(file)


def _separated_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    lines = separated_lines(file, DELIMITERS[str(file_format(file))])
    _, header = next(lines)
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file} cannot be read: its header names {twice!r} more than once. Rename one.")
    for number, (line, fields) in enumerate(lines):
        if len(fields) != len(header):
            raise ValueError(
                f"{file} cannot be read: row {number} (line {line}) has {len(fields)} fields, but the header names "
                f"{len(header)}. Put a text that holds separators or quotes in quotes."
            )
        yield f"{file}: row {number}", dict(zip(header, fields, strict=True))


def separated_lines(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """
    The header and the rows of separated values that are not blank, with the number of the line that each ends in.

    Raises:
        ValueError: for an empty file, and for quotation marks that do not close.
    """
    reader = csv.reader(text_lines(file, newline=""), delimiter=delimiter, strict=True)
    is_empty = True
    try:
        for fields in reader:
            if fields:
                is_empty = False
                yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(
            f"{file} cannot be read: line {reader.line_num}: {error}. Is a quotation mark missing, or one too many?"
        ) from error
    if is_empty:
        raise ValueError(f"{file} cannot be read: it is empty.")


def _parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowException as error:
        raise ValueError(f"{file} cannot be read: {error}. Is it complete?") from error


def _parquet_rows(file: Path, columns: list[str] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    try:
        for batch in _parquet(file).iter_batches(batch_size=ROWS_PER_READ, columns=columns):
            for row in batch.to_pylist():
                yield f"{file}: row {number}", row
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read after row {number}: {error}. Is it complete?") from error
