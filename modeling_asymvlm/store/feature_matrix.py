"""Features on disk: their number formats, and matrices whose rows are read from files without loading the rest."""

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .file_states import State, open_in_state, states_of


# How each dtype lies in a file. numpy has no bfloat16: its bits are read as integers and viewed by torch.
STORED_AS: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype("<f4"),
    torch.float16: np.dtype("<f2"),
    torch.bfloat16: np.dtype("<i2"),
}

MAX_OPEN_FILES = 128


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
    A matrix of features that stays in its files: rows are read from where they lie into the tensor that is returned.
    Other than those of a memory map, pages of the file never count as memory of the process: for a page that is asked
    for, a map takes in whole folios of the file's cache, a gigabyte for 2048 scattered rows.

    `matrix[rows]` for an integer, a slice, a list of integers or a `torch.LongTensor` gives a float32 tensor;
    `matrix[:]` loads all of it. A matrix can be passed to other processes, which open the files themselves. Reading
    raises `ValueError` if a file that is not open yet was replaced or changed meanwhile.

    Args:
        blocks (`Sequence[FeatureBlock]`): where the rows lie, in order.
        dim (`int`): width of a row.
        dtype (`torch.dtype`): what the rows are stored as: float32, float16 or bfloat16, little-endian.
        states (`dict[Path, list[int]]`, *optional*): of the files when the matrix was made; by default, now.
    """

    def __init__(
        self,
        blocks: Sequence[FeatureBlock],
        dim: int,
        dtype: torch.dtype,
        states: dict[Path, State] | None = None,
    ):
        self._blocks = list(blocks)
        self._first_rows = np.cumsum([0, *(block.num_rows for block in self._blocks)])
        self._offsets = np.array([block.offset for block in self._blocks], dtype=np.int64)
        self._files = list(dict.fromkeys(block.file for block in self._blocks))
        self._states = states_of(self._files) if states is None else states
        number_of = {file: number for number, file in enumerate(self._files)}
        self._file_of_block = np.array([number_of[block.file] for block in self._blocks], dtype=np.int64)
        self._descriptors: dict[Path, int] = {}
        weakref.finalize(self, _close_all, self._descriptors)
        self.dtype = dtype
        self.shape = (int(self._first_rows[-1]), dim)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._blocks, self.shape[1], self.dtype, self._states)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | torch.Tensor) -> torch.Tensor:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return self._range(start, max(start, stop)) if step == 1 else self._gather(np.arange(start, stop, step))
        if not isinstance(rows, int):
            return self._gather(np.asarray(rows, dtype=None if len(rows) else np.int64))
        return self._gather(np.array([rows]))[0]

    def split(self, num_rows: int) -> Iterator[torch.Tensor]:
        """All rows in order, `num_rows` at a time, as float32."""
        for start in range(0, len(self), num_rows):
            yield self[start : start + num_rows]

    def _range(self, start: int, stop: int) -> torch.Tensor:
        """Rows side by side: one read per block."""
        first_block = np.searchsorted(self._first_rows, start, side="right") - 1
        blocks = np.arange(first_block, max(first_block, np.searchsorted(self._first_rows, stop)))
        low = np.maximum(self._first_rows[blocks], start)
        return self._read(blocks, low, np.minimum(self._first_rows[blocks + 1], stop) - low, low - start, stop - start)

    def _gather(self, rows: np.ndarray) -> torch.Tensor:
        """Rows anywhere: one read per row, in the order in which they lie."""
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise IndexError(f"Rows must be a vector of integers, got {rows.dtype} of shape {rows.shape}.")
        rows = np.where(rows < 0, rows + len(self), rows)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"Rows must lie in [-{len(self)}, {len(self)}).")
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        blocks = np.searchsorted(self._first_rows, rows, side="right") - 1
        return self._read(blocks, rows, np.ones_like(rows), order, len(rows))

    def _read(
        self, blocks: np.ndarray, rows: np.ndarray, counts: np.ndarray, positions: np.ndarray, num_rows: int
    ) -> torch.Tensor:
        """Reads `counts` rows of `blocks` from `rows` on to `positions` of a matrix of `num_rows`."""
        # Of torch's making, since products of matrices are the same to the last bit only if aligned in the same way.
        features = torch.empty(num_rows, self.shape[1], dtype=self.dtype)
        row_bytes = self.shape[1] * self.dtype.itemsize
        target = features.reshape(-1).view(torch.uint8).numpy().data
        offsets = self._offsets[blocks] + (rows - self._first_rows[blocks]) * row_bytes
        reads = (self._file_of_block[blocks], offsets, positions * row_bytes, counts * row_bytes)
        for number, of_file in groupby(zip(*map(np.ndarray.tolist, reads), strict=True), key=itemgetter(0)):
            with self._opened(self._files[number]) as descriptor:
                for _, offset, start, size in of_file:
                    done = os.preadv(descriptor, [target[start : start + size]], offset)
                    while done < size:  # the system reads 2 GiB at most, and stops at signals
                        more = os.preadv(descriptor, [target[start + done : start + size]], offset + done)
                        if more == 0:
                            raise ValueError(f"{self._files[number]} has become shorter: make these features again.")
                        done += more
        return features.float()

    @contextmanager
    def _opened(self, file: Path) -> Iterator[int]:
        """The descriptor of a file, which stays open where there are not too many files."""
        if file in self._descriptors:
            yield self._descriptors[file]
            return
        descriptor = open_in_state(file, self._states[file])
        if len(self._files) <= MAX_OPEN_FILES and self._descriptors.setdefault(file, descriptor) == descriptor:
            yield descriptor
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _close_all(descriptors: dict[Path, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
