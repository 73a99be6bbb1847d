"""Table files of text (JSON, JSON Lines, CSV, TSV) as data sets of the `datasets` library, cached or streamed."""

import hashlib
import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow as pa

from .columns import (
    DEFAULT_COLUMNS,
    FoundColumns,
    PairColumns,
    require_captions,
    require_id,
    require_number,
    require_path,
)
from .file_rows import ROWS_PER_READ, column_names, rows_of
from .sources import CAPTION_COLUMNS


# Goes up whenever the same files are read as other rows.
ROWS_VERSION = 1


@dataclass(frozen=True)
class RowFile:
    """
    A file of rows.

    Args:
        file (`Path`): the file.
        image_prefix (`str`, *optional*): what its paths of images are relative to, within the folder of images.
        within (`str`, *optional*): only rows whose image lies in this folder.
    """

    file: Path
    image_prefix: str = ""
    within: str | None = None

    def path_of(self, path: str) -> str:
        """The path of an image, relative to the folder of images."""
        return str(PurePosixPath(self.image_prefix, path)) if self.image_prefix else path

    def state(self) -> list[Any]:
        """What tells the file from others and from later versions of itself."""
        state = self.file.stat()
        return [self.file.name, self.image_prefix, self.within, state.st_size, state.st_mtime_ns]


class RowTables(datasets.ArrowBasedBuilder):
    """
    A split in files of rows: paths, captions and image ids as the text that stands there, checked row by row. A copy
    lies in the cache of `datasets` for as long as the files stay the same.

    Args:
        files (`Sequence[RowFile]`): with the same columns.
        columns (`FoundColumns`): which of them are read.
    """

    def __init__(self, files: Sequence[RowFile], columns: FoundColumns):
        self.files, self.columns = list(files), columns
        places = [str(row_file.file.resolve()) for row_file in files]
        content = [ROWS_VERSION, places, [row_file.state() for row_file in files], repr(columns)]
        super().__init__(dataset_name="pairs", hash=hashlib.sha256(json.dumps(content).encode()).hexdigest())

    @property
    def version(self) -> str:
        """What tells these rows from others and from later versions of themselves, wherever the files lie."""
        return json.dumps([ROWS_VERSION, [row_file.state() for row_file in self.files]])

    def _info(self) -> datasets.DatasetInfo:
        text, columns = datasets.Value("string"), self.columns
        features: dict[str, Any] = {columns.image: text, columns.caption: datasets.List(text)}
        if columns.image_id is not None:
            features[columns.image_id] = text
        features |= {name: datasets.Value(str(pa.field(name, CAPTION_COLUMNS[name]).type)) for name in columns.others}
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train", gen_kwargs={"files": self.files})]

    def _generate_tables(self, files: Sequence[RowFile]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        schema = self.info.features.arrow_schema
        for number, row_file in enumerate(files):
            rows, batch = self._rows(row_file), 0
            while read := list(islice(rows, ROWS_PER_READ)):
                yield (number, batch), pa.Table.from_pylist(read, schema)
                batch += 1

    def _rows(self, row_file: RowFile) -> Iterator[dict[str, Any]]:
        columns = self.columns
        unread = {*CAPTION_COLUMNS, DEFAULT_COLUMNS.image_id} - {*column_names(row_file.file)}
        for place, row in rows_of(row_file.file, columns.names):
            surplus = next((name for name in sorted(unread) if row.get(name) is not None), None)
            if surplus is not None:
                raise ValueError(f"{place} has {surplus!r}, but the first row has none. Fill it in, or leave it out.")
            path = require_path(row.get(columns.image), place, columns.image)
            if row_file.within is not None and _first_folder(path) != row_file.within:
                continue
            where = f"{place} (image {path!r})"
            read: dict[str, Any] = {
                columns.image: row_file.path_of(path),
                columns.caption: require_captions(row.get(columns.caption), where, columns.caption),
            }
            if columns.image_id is not None:
                read[columns.image_id] = require_id(row.get(columns.image_id), place, columns.image_id)
            yield read | {name: require_number(row.get(name), where, name) for name in columns.others}


def row_tables(files: Sequence[RowFile], columns: PairColumns) -> RowTables:
    """
    A split in files of rows.

    Raises:
        ValueError: for a file that cannot be read, lacks a column, or has others than the first.
    """
    found = [columns.found_in(column_names(row_file.file), str(row_file.file)) for row_file in files]
    other = next((number for number, of_file in enumerate(found) if of_file != found[0]), None)
    if other is not None:
        raise ValueError(
            f"{files[other].file} has the columns {', '.join(found[other].names)}, but {files[0].file.name} has "
            f"{', '.join(found[0].names)}. Name them alike."
        )
    return RowTables(files, found[0])


def cached_rows(builder: RowTables) -> datasets.Dataset:
    """The rows of all files. Raises `ValueError` for a row that is no pair, and `OSError` where the disk is full."""
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        raise cause_of(error) from error
    return builder.as_dataset(split="train")


def cause_of(error: BaseException) -> BaseException:
    """What went wrong, behind the errors of the `datasets` library that say no more than that something did."""
    while isinstance(error, datasets.exceptions.DatasetsError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def streamed_rows(builder: RowTables) -> datasets.IterableDataset:
    """The rows as they are read, a shard for each file."""
    return builder.as_streaming_dataset(split="train")


def image_places(file: Path, columns: PairColumns) -> set[str]:
    """The first folders in the paths of a file's images, relative to the file; "" stands for none."""
    rows = rows_of(file, [columns.image])
    return {_first_folder(require_path(row.get(columns.image), place, columns.image)) for place, row in rows}


def _first_folder(path: str) -> str:
    first, slash, _ = posixpath.normpath(path).partition("/")
    return first if slash else ""
