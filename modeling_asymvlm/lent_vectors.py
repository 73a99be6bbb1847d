"""Arrays of the vectors of a flat FAISS index that stay what they are, whatever becomes of the index."""

import weakref

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
