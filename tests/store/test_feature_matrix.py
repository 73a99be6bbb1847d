"""Matrices of features that stay in their files: the rows asked for, of any dtype, and little memory."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_asymvlm.store import feature_matrix as features
from modeling_asymvlm.store.feature_matrix import STORED_AS, FeatureBlock, FeatureMatrix, feature_bytes


BLOCKS = (30, 0, 1, 50, 19)  # rows, in two files


def make_matrix(folder, dtype: torch.dtype, dim: int = 6) -> tuple[FeatureMatrix, torch.Tensor]:
    """A matrix whose blocks lie in turns in two files with other bytes around them, and the same in memory."""
    rows = torch.randn(sum(BLOCKS), dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    files = [folder / "a.bin", folder / "b.bin"]
    contents = {file: bytearray(b"head") for file in files}
    blocks = []
    for number, part in enumerate(rows.split(list(BLOCKS))):
        file = files[number % 2]
        blocks.append(FeatureBlock(file, len(contents[file]), len(part)))
        contents[file] += feature_bytes(part).tobytes() + b"between"
    for file, content in contents.items():
        file.write_bytes(content)
    return FeatureMatrix(blocks, dim, dtype), rows.float()


@pytest.mark.parametrize("dtype", list(STORED_AS))
def test_rows_are_those_of_the_matrix_in_memory(tmp_path, dtype):
    matrix, expected = make_matrix(tmp_path, dtype)
    assert len(matrix) == 100 and matrix.shape == (100, 6) and matrix.dtype == dtype
    assert torch.equal(matrix[:], expected)
    generator = torch.Generator().manual_seed(1)
    for size in (0, 1, 7, 300):
        rows = torch.randint(-100, 100, (size,), generator=generator)
        assert torch.equal(matrix[rows], expected[rows])
        assert torch.equal(matrix[rows.tolist()], expected[rows])
    for start, stop in ((0, 30), (29, 32), (30, 31), (31, 100), (40, 20), (-5, None), (90, 200)):
        assert torch.equal(matrix[start:stop], expected[start:stop])
    assert torch.equal(matrix[::7], expected[::7])
    assert torch.equal(matrix[-1], expected[-1])
    assert torch.equal(torch.cat(list(matrix.split(33))), expected)
    for read in (matrix[:], matrix[3:5], matrix[[1, 2]]):
        assert read.dtype == torch.float32 and read.data_ptr() % 64 == 0


def test_rows_that_are_not_there_are_refused(tmp_path):
    matrix, _ = make_matrix(tmp_path, torch.float32)
    for rows in (100, -101, [0, 100]):
        with pytest.raises(IndexError, match=r"Rows must lie in \[-100, 100\)"):
            matrix[rows]
    for rows in (torch.zeros(100, dtype=torch.bool), [[1, 2]], [1.5]):
        with pytest.raises(IndexError, match="Rows must be a vector of integers"):
            matrix[rows]


def test_nothing_is_loaded_a_change_of_the_file_is_seen_and_a_result_is_the_callers_own(tmp_path):
    matrix, expected = make_matrix(tmp_path, torch.float32)
    taken = matrix[:2]
    with open(tmp_path / "a.bin", "r+b") as file:
        file.seek(4)
        file.write(np.float32(7).tobytes())
    assert matrix[0][0] == 7
    assert torch.equal(taken, expected[:2])
    taken.zero_()
    assert torch.equal(matrix[1], expected[1])


@pytest.mark.parametrize(("limit", "num_open"), [(1, 0), (2, 2)])
def test_few_files_stay_open_and_none_is_left_open(tmp_path, monkeypatch, limit, num_open):
    def count() -> int:
        return sum(path.is_relative_to(tmp_path) for path in map(Path.resolve, Path("/proc/self/fd").iterdir()))

    monkeypatch.setattr(features, "MAX_OPEN_FILES", limit)
    matrix, expected = make_matrix(tmp_path, torch.float32)
    for _ in range(3):
        assert torch.equal(matrix[:], expected)
        assert torch.equal(matrix[[99, 0, 31]], expected[[99, 0, 31]])
        assert count() == num_open
    del matrix
    assert count() == 0


def test_a_file_that_became_shorter_is_named(tmp_path):
    matrix, _ = make_matrix(tmp_path, torch.float32)
    os.truncate(tmp_path / "b.bin", 100)
    with pytest.raises(ValueError, match="b.bin has become shorter"):
        matrix[:]


def test_another_process_maps_the_files_itself(tmp_path):
    matrix, expected = make_matrix(tmp_path, torch.float16)
    assert torch.equal(matrix[:], expected)
    sent = pickle.dumps(matrix)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent)[[5, 99]], expected[[5, 99]])
