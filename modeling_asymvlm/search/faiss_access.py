"""Arrays of the vectors of a flat FAISS index that stay what they are, whatever becomes of the index."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np


class Lender:
    """What an array of vectors has as its base: it keeps their index, and with it their memory, alive."""

    def __init__(self, index: faiss.IndexFlatIP):
        self.index = index
        interface = own_vectors(index).__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], True)}  # True: read-only


# By the id of an index, which is no other's for as long as the lender keeps the index.
LENDERS: weakref.WeakValueDictionary[int, Lender] = weakref.WeakValueDictionary()


def own_vectors(index: faiss.IndexFlatIP) -> np.ndarray:
    """The float32 vectors `(rows, width)` in the memory of the index: for as long as it lives and does not change."""
    if not index.ntotal:
        return np.empty((0, index.d), np.float32)
    return faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)


def lend_vectors(index: faiss.IndexFlatIP) -> np.ndarray:
    """The same, read-only, and not to change before [`changeable`] was asked."""
    lender = LENDERS.get(id(index))
    if lender is None:
        lender = LENDERS[id(index)] = Lender(index)
    return np.asarray(lender)


def changeable(index: faiss.IndexFlatIP) -> faiss.IndexFlatIP:
    """The index itself, or a copy of it while any array that it lent, or a part of one, is in use."""
    if id(index) not in LENDERS:
        return index
    copy = faiss.IndexFlatIP(index.d)
    copy.add(own_vectors(index))
    return copy


QUERIES_FOR_A_PRODUCT = 4  # from so many on, one matrix product is faster than as many passes


_lock = threading.Lock()


_thresholds_before: list[int] = []  # one for each search under way, in any thread; the first is not ours


@contextmanager
def matrix_products(num_queries: int) -> Iterator[None]:
    """
    Within it, FAISS searches several queries by matrix products. Left to itself, FAISS 1.15 does so only from
    128,000 numbers of queries on, 250 queries of width 512, and takes up to eight times as long below. The setting is
    as it was once the last of several threads leaves.
    """
    if num_queries < QUERIES_FOR_A_PRODUCT:
        yield
        return
    with _lock:
        _thresholds_before.append(faiss.cvar.distance_compute_blas_threshold)
        faiss.cvar.distance_compute_blas_threshold = QUERIES_FOR_A_PRODUCT
    try:
        yield
    finally:
        with _lock:
            if len(_thresholds_before) == 1:
                faiss.cvar.distance_compute_blas_threshold = _thresholds_before[0]
            _thresholds_before.pop()
