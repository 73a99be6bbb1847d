"""A few corruptions of each kind of file: none is silent, none kills the process, none goes without a name."""

import pytest
import torch


pytest.importorskip("faiss")

from benchmarks import faults  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", faults.KINDS)
def test_damaged_files_are_refused_by_name(kind):
    counts = faults.corruptions(kind, mutations=5, seed=1)
    assert counts
    for name, of_file in counts.items():
        assert of_file["refused"] + of_file["same"] == 5, (name, of_file)
    assert sum(of_file["refused"] for of_file in counts.values()) > 0
