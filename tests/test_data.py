"""EmbeddingStore: layout, round trip, interruption, and every kind of broken store."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling_asymvlm import data
from modeling_asymvlm.data import EmbeddingSplit, EmbeddingStore


def make_split(seed: int, images: int = 5, texts: int = 12, dim: int = 6) -> EmbeddingSplit:
    generator = torch.Generator().manual_seed(seed)
    return EmbeddingSplit(
        image_ids=[f"image-{row}" for row in range(images)],
        image_features=torch.randn(images, dim, generator=generator),
        captions=[f"caption {row}" for row in range(texts)],
        text_features=torch.randn(texts, dim, generator=generator),
        text_image_index=torch.randint(images, (texts,), generator=generator),
        columns={"ambiguity": np.arange(texts) / 7},
    )


@pytest.fixture
def store(tmp_path) -> EmbeddingStore:
    return EmbeddingStore.write(tmp_path / "store", {"train": make_split(0), "test": make_split(1)}, {"backbone": "x"})


def test_a_store_gives_back_what_was_written(store):
    assert store.splits == ["test", "train"]
    assert store.fingerprint == {"backbone": "x"}
    split, expected = store.split("train"), make_split(0)
    assert split.image_ids == expected.image_ids and split.captions == expected.captions
    assert torch.equal(split.image_features[:], expected.image_features)
    assert torch.equal(split.text_features[:], expected.text_features)
    assert torch.equal(split.text_image_index, expected.text_image_index)
    np.testing.assert_array_equal(split.columns["ambiguity"], expected.columns["ambiguity"])


def test_the_datasets_library_reads_a_store(store):
    files = {"train": str(store.path / "captions" / "train.parquet")}
    captions = datasets.load_dataset("parquet", data_files=files, split="train")
    assert captions.column_names == ["image_id", "caption", "text_features", "ambiguity"]
    np.testing.assert_array_equal(captions[3]["text_features"], make_split(0).text_features[3].numpy())


def test_half_precision_and_lists_of_any_type_are_read_as_float32(store):
    features = make_split(0).image_features.half()
    ids = [f"image-{row}" for row in range(5)]
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(features.numpy().ravel()), 6)
    (store.path / "store.json").unlink()
    for column in (fixed, pa.array(features.float().tolist())):
        pq.write_table(pa.table({"image_id": ids, "image_features": column}), store.path / "images" / "train.parquet")
        read = EmbeddingStore(store.path).split("train").image_features
        assert read.dtype == torch.float32
        assert torch.equal(read, features.float())


def test_writing_replaces_a_store_and_an_interruption_keeps_the_old_one(store, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(data, "write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            EmbeddingStore.write(store.path, {"train": make_split(2)}, {"backbone": "y"})
    assert EmbeddingStore(store.path).fingerprint == {"backbone": "x"}
    assert torch.equal(EmbeddingStore(store.path).split("train").image_features[:], make_split(0).image_features)
    replaced = EmbeddingStore.write(store.path, {"train": make_split(2)}, {"backbone": "y"})
    assert replaced.splits == ["train"] and replaced.fingerprint == {"backbone": "y"}
    assert [path.name for path in store.path.parent.iterdir()] == [store.path.name]


def rewrite(store: EmbeddingStore, part: str, **changes) -> EmbeddingStore:
    """Changes a table as by hand, in a store that says nothing of its files."""
    (store.path / "store.json").unlink(missing_ok=True)
    file = store.path / part / "train.parquet"
    columns = {**pq.read_table(file).to_pydict(), **changes}
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), file)
    return EmbeddingStore(store.path)


def test_features_that_are_not_finite_are_named(store):
    features = make_split(0).text_features.tolist()
    features[4][2], features[7][0] = float("nan"), float("inf")
    store = rewrite(store, "captions", text_features=features)
    with pytest.raises(ValueError, match="text_features is NaN or infinite in 2 of 12 rows, the first is row 4"):
        store.split("train")


def test_widths_that_disagree_are_named(store):
    store = rewrite(store, "captions", text_features=torch.zeros(12, 4).tolist())
    with pytest.raises(ValueError, match="image features are 6 wide, text features 4"):
        store.split("train")
    store = rewrite(store, "captions", text_features=[[0.0] * (3 + row % 2) for row in range(12)])
    with pytest.raises(ValueError, match=r"as wide in every row, got widths \[3, 4\]"):
        store.split("train")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("captions", {"caption": None}, r"lacks the columns \['caption'\]; it has \['image_id', 'text_features'"),
        ("captions", {"caption": list(range(12))}, "caption must be text, but is int64"),
        ("images", {"image_features": [1.0] * 5}, "must hold a list of numbers in every row, but is double"),
        ("images", {"image_features": [[1.0] * 6] * 4 + [None]}, "must hold a list .* with 1 rows empty"),
        ("captions", {"caption": ["a", "  ", ""] + ["b"] * 9}, "2 captions are empty, the first in row 1"),
        ("captions", {"image_id": ["image-9"] * 12}, "1 image_id have no image, the first is 'image-9'"),
        ("images", {"image_id": ["image-0"] * 5}, "some image_id stands more than once"),
    ],
)
def test_broken_tables_are_named(store, part, changes, message):
    store = rewrite(store, part, **changes)
    with pytest.raises(ValueError, match=message):
        store.split("train")


def test_fewer_than_two_pairs_are_refused(tmp_path):
    store = EmbeddingStore.write(tmp_path / "one", {"train": make_split(3, images=1, texts=1)}, {})
    with pytest.raises(ValueError, match="1 pairs, but contrast needs at least two"):
        store.split("train")


def test_folders_that_are_no_store_are_named(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of cached features at .*nowhere"):
        EmbeddingStore(tmp_path / "nowhere")
    with pytest.raises(KeyError, match="no split 'validation'; it has test, train"):
        store.split("validation")
    (store.path / "images" / "test.parquet").unlink()
    with pytest.raises(ValueError, match=r"images for \['train'\] and captions for \['test', 'train'\]"):
        EmbeddingStore(store.path)
    (store.path / "store.json").unlink()
    truncated = store.path / "images" / "train.parquet"
    truncated.write_bytes(truncated.read_bytes()[:-50])
    (store.path / "captions" / "test.parquet").unlink()
    with pytest.raises(ValueError, match="train.parquet cannot be read as parquet"):
        EmbeddingStore(store.path).split("train")
