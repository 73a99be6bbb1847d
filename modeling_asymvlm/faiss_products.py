"""How FAISS computes inner products of a few queries."""

import threading

import faiss


QUERIES_FOR_A_PRODUCT = 4  # from so many on, one matrix product is faster than as many passes


class MatrixProducts:
    """
    A context within which FAISS searches several queries by matrix products. Left to itself, FAISS 1.15 does so only
    from 128,000 numbers of queries on, 250 queries of width 512, and takes up to eight times as long below. The
    setting is one of the process: the last of several threads to leave restores it.
    """

    _lock = threading.Lock()
    _inside = 0
    _own_threshold = 0

    def __enter__(self) -> None:
        with self._lock:
            if MatrixProducts._inside == 0:
                MatrixProducts._own_threshold = faiss.cvar.distance_compute_blas_threshold
                faiss.cvar.distance_compute_blas_threshold = QUERIES_FOR_A_PRODUCT
            MatrixProducts._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            MatrixProducts._inside -= 1
            if MatrixProducts._inside == 0:
                faiss.cvar.distance_compute_blas_threshold = MatrixProducts._own_threshold
