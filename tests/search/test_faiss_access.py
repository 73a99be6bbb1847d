"""Vectors of an index that outlive it and never change, and cost no copy unless they must."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch


faiss = pytest.importorskip("faiss")

from modeling_asymvlm.search.image_index import ImageIndex  # noqa: E402
from modeling_asymvlm.search.index_storage import FlatIndex  # noqa: E402
from modeling_asymvlm.search.text_index import TextIndex  # noqa: E402


def make_index(rows: int = 5) -> ImageIndex:
    index = ImageIndex(8, distribution="vmf")
    index.add(torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows)))
    return index


def address(index: FlatIndex) -> int:
    return int(index._faiss.get_xb())


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("part", [lambda vectors: vectors, lambda vectors: vectors[2:, 1:], lambda vectors: vectors.T])
def test_an_array_keeps_the_memory_that_it_looks_at(memory_map, part, tmp_path):
    make_index().save(tmp_path / "index")
    index = ImageIndex.load(tmp_path / "index", memory_map=memory_map)
    expected = part(index.vectors.copy())
    vectors, memory = part(index.vectors), weakref.ref(index._faiss)
    del index
    gc.collect()
    assert memory() is not None
    np.testing.assert_array_equal(vectors, expected)
    del vectors
    assert memory() is None


@pytest.mark.parametrize("part", [lambda vectors: vectors, lambda vectors: vectors[2:]])
def test_an_array_does_not_change_when_the_index_grows_or_shrinks(part):
    index = make_index()
    vectors, expected = part(index.vectors), part(index.vectors).copy()
    index.add(torch.ones(200, 8))
    assert index.vectors.shape == (205, 8) and not np.shares_memory(vectors, index.vectors)
    np.testing.assert_array_equal(vectors, expected)
    np.testing.assert_array_equal(part(index.vectors[:5]), expected)
    later = index.vectors
    index._truncate(3)
    index.add(-torch.ones(4, 8))
    assert (later[5:] > 0).all() and len(later) == 205 and (index.vectors[3:] < 0).all() and len(index.vectors) == 7
    assert index.search(-torch.ones(1, 8), 1).rows.item() == 3


def test_vectors_are_not_copied_unless_an_array_of_them_is_in_use():
    index = make_index()
    assert index.vectors.ctypes.data == address(index) and np.shares_memory(index.vectors, index.vectors)
    memory = index._faiss
    index.search(torch.ones(1, 8), 1)
    index.build_approximate("Flat")
    index.add(torch.ones(1, 8))
    assert index._faiss is memory
    vectors = index.vectors
    index.add(torch.ones(1, 8))
    assert index._faiss is not memory
    memory = index._faiss
    index.add(torch.ones(1, 8))
    assert index._faiss is memory and len(vectors) == 6 and len(index) == 8


def test_vectors_cannot_be_written_to_even_on_purpose():
    vectors = make_index().vectors
    with pytest.raises(ValueError, match="read-only"):
        vectors[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        vectors.flags.writeable = True


def test_an_empty_index_has_no_vectors_and_grows():
    index = TextIndex(8, distribution="power_spherical")
    vectors = index.vectors
    index.add(torch.ones(2, 8))
    assert vectors.shape == (0, 10) and index.vectors.shape == (2, 10)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_a_copy_of_an_index_has_vectors_of_its_own(duplicate):
    index = make_index()
    vectors = index.vectors
    other = duplicate(index)
    assert other.vectors.ctypes.data == address(other) and not np.shares_memory(vectors, other.vectors)
    np.testing.assert_array_equal(other.vectors, vectors)
