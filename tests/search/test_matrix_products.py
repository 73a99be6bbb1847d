"""The setting of FAISS is lowered while anybody searches, and is afterwards as it was."""

import threading
from itertools import permutations

import pytest


faiss = pytest.importorskip("faiss")

from modeling_asymvlm.search.faiss_access import QUERIES_FOR_A_PRODUCT, matrix_products  # noqa: E402
from modeling_asymvlm.search.image_index import ImageIndex  # noqa: E402


def threshold() -> int:
    return faiss.cvar.distance_compute_blas_threshold


class Spy:
    """An approximate index that fails, and knows under which setting."""

    ntotal, d = 3, 2
    within: int

    def search(self, queries, count):
        self.within = threshold()
        raise InterruptedError


def test_an_error_leaves_the_setting_as_it_was():
    index, before, spy = ImageIndex(2, distribution="vmf"), threshold(), Spy()
    rows = [[1.0, 0.0]] * 8
    index.add(rows[:3])
    for num_queries, within in ((8, QUERIES_FOR_A_PRODUCT), (1, before)):
        with pytest.raises(InterruptedError):
            index.search(rows[:num_queries], 3, approximate=spy)
        assert threshold() == before != QUERIES_FOR_A_PRODUCT and spy.within == within


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_searches_in_several_threads_leave_the_setting_as_it_was(order):
    before = threshold()
    entered, may_leave = ([threading.Event() for _ in range(3)] for _ in range(2))

    def search(number: int) -> None:
        with matrix_products(8):
            entered[number].set()
            may_leave[number].wait(timeout=10)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(3)]
    for thread, event in zip(threads, entered, strict=True):
        thread.start()
        assert event.wait(timeout=10)
    for number in order:
        assert threshold() == QUERIES_FOR_A_PRODUCT
        may_leave[number].set()
        threads[number].join(timeout=10)
    assert threshold() == before
