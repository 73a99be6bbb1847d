"""When FAISS searches by matrix products, which is a setting of the whole process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss


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
