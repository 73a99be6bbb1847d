"""The parquet files of a store: their names, how they are written, and where their features lie."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ..pairs.sources import CAPTION_COLUMNS
from ..utils.durable_files import sha256_of
from .feature_matrix import STORED_AS, FeatureBlock, feature_bytes


ARROW_TYPES = {torch.float32: pa.float32(), torch.float16: pa.float16()}
FEATURE_COLUMNS = {"images": "image_features", "captions": "text_features"}


# Each row group is one page of features.
ROWS_PER_GROUP = 2**14

_SHARD_NAME = re.compile(r"(?P<split>.+?)-(?P<number>\d{5,})(-of-(?P<total>\d{5,}))?")


def shard_name(split: str, number: int, total: int) -> str:
    """File name of one of `total` shards of a split, as the `datasets` library names them."""
    return f"{split}-{number:05d}-of-{total:05d}.parquet"


def shards_of_splits(folder: Path) -> dict[str, list[Path]]:
    """
    The parquet files of each split in a folder, in order: `{split}.parquet`, or a series `{split}-00000.parquet` or
    `{split}-00000-of-00012.parquet`.

    Raises:
        ValueError: if a series has gaps, or files that do not belong together.
    """
    series: dict[str, dict[int, Path]] = {}
    totals: dict[str, set[int | None]] = {}
    for file in sorted(folder.glob("[!.]*.parquet")):
        match = _SHARD_NAME.fullmatch(file.stem)
        split, number, total = (file.stem, 0, "1") if match is None else match.group("split", "number", "total")
        files = series.setdefault(split, {})
        totals.setdefault(split, set()).add(None if total is None else int(total))
        if int(number) in files or len(totals[split]) > 1:
            others = ", ".join(sorted(other.name for other in files.values())[:3])
            raise ValueError(
                f"{folder}: {file.name} does not belong with {others}: a split is one file, or one series of shards. "
                "Remove what is left from before."
            )
        files[int(number)] = file
    for split, files in series.items():
        (stated,) = totals[split]
        total = max(files) + 1 if stated is None else stated
        amiss = sorted(files.keys() ^ set(range(total)))
        if amiss:
            raise ValueError(
                f"{folder}: split {split!r} should have shards 0 to {total - 1}, but of number {amiss[0]} there is "
                f"{'one too many' if amiss[0] in files else 'none'}. Restore the shards, or make the features again."
            )
    return {split: [files[number] for number in sorted(files)] for split, files in series.items()}


class ShardWriter:
    """
    Writes one file of a store. The features are stored plainly, a row group after another, so that rows can be
    read where they lie; everything else is compressed.

    Args:
        file (`Path`): will be created.
        part (`str`): `"images"` or `"captions"`.
        dim (`int`): width of the features.
        dtype (`torch.dtype`): what features are stored as; one of `STORED_AS`.
        columns (`Sequence[str]`): those of `CAPTION_COLUMNS` that there will be.
    """

    def __init__(self, file: Path, part: str, dim: int, dtype: torch.dtype, columns: Sequence[str] = ()):
        self.file, self.column, self.dim, self.dtype = file, FEATURE_COLUMNS[part], dim, dtype
        texts = ["image_id"] if part == "images" else ["image_id", "caption"]
        self._schema = pa.schema(
            [pa.field(name, pa.string(), nullable=False) for name in texts]
            + [_feature_field(self.column, dim, dtype)]
            + [pa.field(name, CAPTION_COLUMNS[name]) for name in columns]
        )
        self._waiting: list[pa.Table] = []
        self._num_rows = self._num_waiting = 0
        self._writer = pq.ParquetWriter(
            file,
            self._schema,
            compression={name: "none" if name == self.column else "zstd" for name in self._schema.names},
            use_dictionary=["image_id"],
            write_statistics=False,
            data_page_size=2**30,
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def write(self, features: torch.Tensor, columns: Mapping[str, Any]) -> None:
        """Adds rows: their features `(rows, dim)`, and the other columns by name."""
        arrays = [
            _feature_array(features.to(self.dtype), field.type)
            if field.name == self.column
            else pa.array(columns[field.name], type=field.type)
            for field in self._schema
        ]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._num_rows += len(features)
        self._num_waiting += len(features)
        if self._num_waiting >= ROWS_PER_GROUP:
            self._flush(self._num_waiting - self._num_waiting % ROWS_PER_GROUP)

    def _flush(self, num_rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        self._writer.write_table(table.slice(0, num_rows).combine_chunks(), row_group_size=ROWS_PER_GROUP)
        self._waiting = [table.slice(num_rows)]
        self._num_waiting -= num_rows

    def finish(self) -> dict[str, Any]:
        """
        Closes the file.

        Returns:
            Its `rows`, `size` in bytes and `sha256`.

        Raises:
            RuntimeError: if the file is not laid out as it has to be, under an unknown version of pyarrow.
        """
        if self._num_waiting:
            self._flush(self._num_waiting)
        self._writer.close()
        _check_layout(self.file, self.column)
        return {"rows": self._num_rows, "size": self.file.stat().st_size, "sha256": sha256_of(self.file)}


def _feature_field(column: str, dim: int, dtype: torch.dtype) -> pa.Field:
    if dtype in ARROW_TYPES:
        rows = pa.list_(pa.field("element", ARROW_TYPES[dtype], nullable=False), dim)
        return pa.field(column, rows, nullable=False)
    # Parquet has no bfloat16. Bytes with a note cannot be mistaken for float16 or for integers.
    return pa.field(column, pa.binary(2 * dim), nullable=False, metadata={"dtype": "bfloat16"})


def _feature_array(features: torch.Tensor, arrow_type: pa.DataType) -> pa.Array:
    values = feature_bytes(features)
    if pa.types.is_fixed_size_binary(arrow_type):
        return pa.FixedSizeBinaryArray.from_buffers(arrow_type, len(values), [None, pa.py_buffer(values)])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=arrow_type)


def is_bfloat16(field: pa.Field) -> bool:
    """Whether a column holds the bytes of bfloat16 numbers."""
    return pa.types.is_fixed_size_binary(field.type) and (field.metadata or {}).get(b"dtype") == b"bfloat16"


def feature_blocks(file: Path, column: str) -> tuple[list[FeatureBlock], int, torch.dtype]:
    """
    Where the features lie in a file that [`ShardWriter`] wrote.

    Returns:
        The blocks, the width of the rows, and what they are stored as.
    """
    parquet = pq.ParquetFile(file)
    field = parquet.schema_arrow.field(column)
    if is_bfloat16(field):
        dim, dtype = field.type.byte_width // 2, torch.bfloat16
    else:
        dim = field.type.list_size
        dtype = next(dtype for dtype, arrow_type in ARROW_TYPES.items() if arrow_type == field.type.value_type)
    position = parquet.schema_arrow.names.index(column)
    blocks = []
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        chunk = group.column(position)
        end = chunk.data_page_offset + chunk.total_compressed_size
        blocks.append(FeatureBlock(file, end - group.num_rows * dim * STORED_AS[dtype].itemsize, group.num_rows))
    return blocks, dim, dtype


def _check_layout(file: Path, column: str) -> None:
    """Compares the features where they should lie with those that pyarrow reads."""
    blocks, dim, dtype = feature_blocks(file, column)
    parquet = pq.ParquetFile(file)
    for number, block in enumerate(blocks):
        chunk = parquet.metadata.row_group(number).column(parquet.schema_arrow.names.index(column))
        plain = chunk.compression == "UNCOMPRESSED" and set(chunk.encodings) <= {"PLAIN", "RLE"}
        read = parquet.read_row_group(number, columns=[column])[column].combine_chunks()
        rows = np.fromfile(file, STORED_AS[dtype], count=block.num_rows * dim, offset=block.offset)
        if not (plain and np.array_equal(stored_values(read).ravel().view(np.uint8), rows.view(np.uint8))):
            raise RuntimeError(
                f"pyarrow {pa.__version__} lays out features in {file} so that they cannot be read in place: install "
                "another version of pyarrow."
            )


def stored_values(rows: pa.Array) -> np.ndarray:
    """The values of a column of fixed-size lists of numbers, or of bytes of bfloat16, as `(rows, dim)`."""
    if pa.types.is_fixed_size_binary(rows.type):
        values = np.frombuffer(rows.buffers()[1], STORED_AS[torch.bfloat16])
        width = rows.type.byte_width // 2
        return values[rows.offset * width : (rows.offset + len(rows)) * width].reshape(len(rows), width)
    return pc.list_flatten(rows).to_numpy(zero_copy_only=False).reshape(len(rows), rows.type.list_size)
