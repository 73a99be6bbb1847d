"""Features on disk: their number formats, and matrices that are read from files without being loaded."""

import mmap
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


# How each dtype lies in a file. numpy has no bfloat16: its bits are read as integers and viewed by torch.
STORED_AS: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype("<f4"),
    torch.float16: np.dtype("<f2"),
    torch.bfloat16: np.dtype("<i2"),
}

MAX_OPEN_FILES = 128
MAX_MAPPED_BYTES = 2**26
# A page fault maps the cached pages around it as well: 16 pages of 4 KiB on Linux.
BYTES_OF_A_FAULT = 2**16


def feature_bytes(features: torch.Tensor) -> np.ndarray:
    """Features as numpy holds them in a file: `(rows, dim)` of `STORED_AS[features.dtype]`."""
    if features.dtype == torch.bfloat16:
        features = features.view(torch.int16)
    return features.contiguous().numpy()


def features_from_bytes(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of [`feature_bytes`], as float32."""
    tensor = torch.from_numpy(values)
    return (tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor).float()


class FeatureBlock(NamedTuple):
    """Rows of features that lie one after another in a file, from the byte `offset` on."""

    file: Path
    offset: int
    num_rows: int


class FeatureMatrix:
    """
    A matrix of features that stays in its files: reading rows maps them into memory, copies them and lets the mapping
    go, so that a process holds no more than `MAX_MAPPED_BYTES` of it, whatever the size of the matrix.

    `matrix[rows]` for an integer, a slice, a list of integers or a `torch.LongTensor` gives a float32 tensor, with one
    vectorised read per block; `matrix[:]` loads all of it. A matrix can be passed to other processes, which map the
    files themselves.

    Args:
        blocks (`Sequence[FeatureBlock]`): where the rows lie, in order.
        dim (`int`): width of a row.
        dtype (`torch.dtype`): what the rows are stored as: float32, float16 or bfloat16, little-endian.
    """

    def __init__(self, blocks: Sequence[FeatureBlock], dim: int, dtype: torch.dtype):
        self._blocks = list(blocks)
        self._first_rows = np.cumsum([0, *(block.num_rows for block in self._blocks)])
        self._maps: OrderedDict[Path, mmap.mmap] = OrderedDict()
        self._mapped_bytes = 0
        self.dtype = dtype
        self.shape = (int(self._first_rows[-1]), dim)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._blocks, self.shape[1], self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | torch.Tensor) -> torch.Tensor:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return self._range(start, stop) if step == 1 else self._gather(np.arange(start, stop, step))
        if not isinstance(rows, int):
            return self._gather(np.asarray(rows, dtype=None if len(rows) else np.int64))
        return self._gather(np.array([rows]))[0]

    def split(self, num_rows: int) -> Iterator[torch.Tensor]:
        """All rows in order, `num_rows` at a time, as float32."""
        for start in range(0, len(self), num_rows):
            yield self[start : start + num_rows]

    def _range(self, start: int, stop: int) -> torch.Tensor:
        values = np.empty((max(0, stop - start), self.shape[1]), STORED_AS[self.dtype])
        first_number = np.searchsorted(self._first_rows, start, side="right") - 1
        for number in range(first_number, np.searchsorted(self._first_rows, stop)):
            first = int(self._first_rows[number])
            low, high = max(start - first, 0), min(stop - first, self._blocks[number].num_rows)
            if low < high:
                values[first + low - start : first + high - start] = self._block(number, high - low)[low:high]
        return features_from_bytes(values, self.dtype)

    def _gather(self, rows: np.ndarray) -> torch.Tensor:
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise IndexError(f"Rows must be a vector of integers, got {rows.dtype} of shape {rows.shape}.")
        rows = np.where(rows < 0, rows + len(self), rows)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"Rows must lie in [-{len(self)}, {len(self)}).")
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        numbers = np.searchsorted(self._first_rows, rows, side="right") - 1
        values = np.empty((len(rows), self.shape[1]), STORED_AS[self.dtype])
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, stop in pairwise([*starts, len(rows)]):
            number = numbers[start]
            block = self._block(number, stop - start)
            values[order[start:stop]] = block[rows[start:stop] - self._first_rows[number]]
        return features_from_bytes(values, self.dtype)

    def _block(self, number: int, num_rows: int) -> np.ndarray:
        """A block as an array over its file, of which `num_rows` will be read."""
        file, offset, rows_of_block = self._blocks[number]
        row_bytes = self.shape[1] * STORED_AS[self.dtype].itemsize
        if self._mapped_bytes > MAX_MAPPED_BYTES:
            for each in list(self._maps.values()):
                each.madvise(mmap.MADV_DONTNEED)
            self._mapped_bytes = 0
        self._mapped_bytes += min(num_rows * (row_bytes + BYTES_OF_A_FAULT), rows_of_block * row_bytes)
        mapped = self._maps.get(file)
        if mapped is None:
            if len(self._maps) >= MAX_OPEN_FILES:
                self._maps.popitem(last=False)
            with file.open("rb") as opened:
                mapped = self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        values = np.frombuffer(mapped, STORED_AS[self.dtype], count=rows_of_block * self.shape[1], offset=offset)
        return values.reshape(rows_of_block, self.shape[1])
