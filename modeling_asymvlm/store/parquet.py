"""Reading parquet files of features, whoever wrote them."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from .feature_matrix import FeatureMatrix, features_from_bytes
from .file_states import check_states, states_of
from .shards import feature_blocks, is_bfloat16, stored_values


def open_parquet(file: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Opens a file. Raises `ValueError` if it is not parquet, or lacks one of the columns."""
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} cannot be read as parquet ({error}). Is it complete?") from error
    names = parquet.schema_arrow.names
    missing = [column for column in columns if column not in names]
    if missing:
        raise ValueError(f"{file} lacks the columns {missing}; it has {names}.")
    return parquet


def read_column(files: Sequence[Path], column: str, as_type: pa.DataType | None = None) -> pa.ChunkedArray:
    """One column of all rows of some files; nulls in place of it where a file lacks it. Features are not touched."""
    chunks: list[pa.Array] = []
    for file in files:
        parquet = open_parquet(file, ())
        if column in parquet.schema_arrow.names:
            values = parquet.read(columns=[column], use_threads=False)[column]
            chunks += (values if as_type is None else values.cast(as_type)).chunks
        else:
            chunks.append(pa.nulls(parquet.metadata.num_rows, as_type))
    return pa.chunked_array(chunks, type=as_type if as_type is not None or not chunks else chunks[0].type)


class TextColumn(Sequence[str]):
    """
    A column of texts in parquet files, read when a text is first asked for and equal to a list of the same texts.
    Reading raises `ValueError` if a file was replaced or changed since the column was made.

    Args:
        files (`Sequence[Path]`): where the rows lie, in order.
        column (`str`): its name; other types are turned into text.
        num_rows (`int`): rows of all files.
    """

    def __init__(self, files: Sequence[Path], column: str, num_rows: int):
        self._files, self._column, self._num_rows = list(files), column, num_rows
        self._states = states_of(files)

    @cached_property
    def _texts(self) -> pa.ChunkedArray:
        check_states(self._states)
        try:
            return read_column(self._files, self._column, pa.large_string())
        finally:
            check_states(self._states)  # where a file went away meanwhile, this says so

    def __len__(self) -> int:
        return self._num_rows

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return self._texts.take(pa.array(np.arange(len(self))[row])).to_pylist()
        if not -len(self) <= row < len(self):
            raise IndexError(f"There is no row {row} of {len(self)}.")
        return self._texts[int(row)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self._texts.iterchunks():
            yield from chunk.to_pylist()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def rows_of_images(groups: Sequence[tuple[Sequence[Path], Sequence[Path]]]) -> torch.Tensor:
    """
    The row of each caption's image, `(num_captions,)`.

    Args:
        groups (`Sequence`): pairs of image files and caption files, in which the captions' images stand.

    Raises:
        ValueError: if there is no image for a caption.
    """
    rows, first = [], 0
    for images, captions in groups:
        image_ids = read_column(images, "image_id", pa.large_string())
        caption_ids = read_column(captions, "image_id", pa.large_string())
        found = pc.index_in(caption_ids, image_ids, skip_nulls=True)
        if found.null_count:
            without = pc.unique(caption_ids.filter(pc.is_null(found))).to_pylist()
            raise ValueError(
                f"{captions[0] if len(captions) == 1 else captions[0].parent}: {len(without)} image_id have no image, "
                f"the first is {min(without, key=str)!r}."
            )
        rows.append(first + found.to_numpy().astype(np.int64))
        first += len(image_ids)
    return torch.from_numpy(np.concatenate(rows))


def features_in_place(files: Sequence[Path], column: str) -> FeatureMatrix:
    """The features of files that [`~shards.ShardWriter`] wrote, left where they are."""
    layouts = [feature_blocks(file, column) for file in files]
    blocks = [block for blocks, _, _ in layouts for block in blocks]
    kinds = {(dim, dtype) for _, dim, dtype in layouts}
    if len(kinds) > 1:
        raise ValueError(
            f"{files[0].parent}: {column} differs in width or dtype between files: {sorted(map(str, kinds))}."
        )
    return FeatureMatrix(blocks, *kinds.pop())


def decoded_features(files: Sequence[Path], column: str) -> torch.Tensor:
    """
    The features of files however they are laid out, as float32 in memory.

    Raises:
        ValueError: for a column that is no list of numbers, rows without one, or unequal widths.
    """
    parts = [_decoded(file, column) for file in files]
    widths = sorted({part.shape[1] for part in parts if len(part)})
    if len(widths) > 1:
        raise ValueError(f"{files[0].parent}: {column} must be as wide in every row, got widths {widths}.")
    return parts[0] if len(parts) == 1 else torch.cat([part for part in parts if len(part)] or parts[:1])


def _decoded(file: Path, column: str) -> torch.Tensor:
    parquet = open_parquet(file, ("image_id", column))
    rows = parquet.read(columns=[column], use_threads=False)[column].combine_chunks()
    if is_bfloat16(parquet.schema_arrow.field(column)) and not rows.null_count:
        return features_from_bytes(stored_values(rows).copy(), torch.bfloat16)
    is_list = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    if not any(check(rows.type) for check in is_list) or rows.null_count:
        raise ValueError(
            f"{file}: {column} must hold a list of numbers in every row, but is {rows.type} with {rows.null_count} "
            "rows empty."
        )
    if not pa.types.is_fixed_size_list(rows.type):
        widths = sorted(pc.unique(pc.list_value_length(rows)).to_pylist())
        if len(widths) > 1:
            raise ValueError(f"{file}: {column} must be as wide in every row, got widths {widths}.")
        rows = pa.FixedSizeListArray.from_arrays(rows.flatten(), widths[0] if widths else 0)
    values = pc.list_flatten(rows).to_numpy(zero_copy_only=False).astype(np.float32)
    return torch.from_numpy(values.reshape(len(rows), rows.type.list_size))
