"""EmbeddingStore: layout, round trip, interruption, and every kind of broken store."""

from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling_asymvlm.store import embedding_store as data
from modeling_asymvlm.store import verification
from modeling_asymvlm.store.embedding_store import EmbeddingStore
from tests.support.stores import make_split


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_are_stored_in_their_dtype_and_read_where_they_lie(tmp_path, dtype):
    split = make_split(0, images=40_000, texts=50_000)
    split = replace(split, image_features=split.image_features.to(dtype), text_features=split.text_features.to(dtype))
    store = EmbeddingStore.write(tmp_path / "store", {"train": split}, {})
    read = store.split("train")
    file = store.path / "images" / "train.parquet"
    assert pq.read_metadata(file).num_row_groups == 3
    assert read.image_features.dtype == dtype
    assert torch.equal(read.image_features[:], split.image_features.float())
    rows = torch.tensor([49_999, 3, 16_384, 16_383, 3])
    assert torch.equal(read.text_features[rows], split.text_features[rows].float())
    again = EmbeddingStore.write(tmp_path / "again", {"train": read}, {})
    for part in ("images", "captions"):
        assert (again.path / part / "train.parquet").read_bytes() == (store.path / part / "train.parquet").read_bytes()
    (store.path / "store.json").unlink()  # without which it is a file from elsewhere, decoded by pyarrow
    decoded = EmbeddingStore(store.path).split("train")
    assert isinstance(decoded.image_features, torch.Tensor)
    assert torch.equal(decoded.image_features, split.image_features.float())


def test_reading_rows_reads_the_file_and_not_a_copy(store):
    split, file = store.split("train"), store.path / "captions" / "train.parquet"
    row = make_split(0).text_features[7]
    offset = file.read_bytes().index(row.numpy().tobytes())
    with open(file, "r+b") as opened:
        opened.seek(offset)
        opened.write(np.float32(5).tobytes())
    assert split.text_features[7][0] == 5


def test_the_datasets_library_reads_bfloat16_as_bytes_that_are_no_numbers(tmp_path):
    split = make_split(0)
    half = {name: getattr(split, name).bfloat16() for name in ("image_features", "text_features")}
    store = EmbeddingStore.write(tmp_path / "store", {"train": replace(split, **half)}, {})
    files = {"train": str(store.path / "images" / "train.parquet")}
    images = datasets.load_dataset("parquet", data_files=files, split="train")
    values = torch.frombuffer(bytearray(images[2]["image_features"]), dtype=torch.bfloat16)
    assert torch.equal(values, half["image_features"][2])


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


@pytest.mark.parametrize("part", ["images", "captions"])
def test_a_file_that_is_not_as_it_was_written_is_named(store, part):
    file = store.path / part / "train.parquet"
    content = file.read_bytes()
    store.split("train")
    for damaged, message in (
        (content[:-50], f"is {len(content) - 50} bytes long, but was written with {len(content)}"),
        (content[:300] + bytes([content[300] ^ 4]) + content[301:], "is not as it was written"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{part}/train.parquet {message}.*Restore it, or make the features"):
            EmbeddingStore(store.path).split("train")
    file.write_bytes(content)
    assert len(EmbeddingStore(store.path).split("train").captions) == 12


def test_what_was_checked_is_checked_again_only_after_a_change_or_when_asked(store, monkeypatch):
    checked = []
    monkeypatch.setattr(data, "damage_of", lambda file, record: checked.append(file.parent.name))
    store.split("train")  # too young to tell whether it will change within the same tick of the clock
    monkeypatch.setattr(verification, "CLOCK_TICK", 0)
    for _ in range(3):
        EmbeddingStore(store.path).split("train")
    assert checked == ["images", "captions"] * 2
    (store.path / "images" / "train.parquet").touch()
    store.split("train")
    assert checked == ["images", "captions"] * 3
    store.split("train")
    store.verify("train")
    assert checked == ["images", "captions"] * 4


def test_shards_from_elsewhere_are_read_in_order_and_gaps_are_named(tmp_path):
    split = make_split(0)
    for part in ("images", "captions"):
        (tmp_path / part).mkdir()
    ids = np.array(split.image_ids)
    for number, rows in enumerate(np.array_split(np.arange(5), 3)):
        table = {"image_id": ids[rows], "image_features": split.image_features[rows].tolist()}
        pq.write_table(pa.table(table), tmp_path / "images" / f"train-{number:05d}.parquet")
    for number, rows in enumerate(np.array_split(np.arange(12), 2)):
        table = {
            "image_id": ids[split.text_image_index[rows]],
            "caption": [split.captions[row] for row in rows],
            "text_features": split.text_features[rows].tolist(),
        }
        if number:
            table["level"] = [1] * len(rows)
        pq.write_table(pa.table(table), tmp_path / "captions" / f"train-{number:05d}-of-00002.parquet")
    read = EmbeddingStore(tmp_path).split("train")
    assert read.image_ids == split.image_ids and read.captions == split.captions
    assert torch.equal(read.image_features, split.image_features)
    assert torch.equal(read.text_features, split.text_features)
    assert torch.equal(read.text_image_index, split.text_image_index)
    np.testing.assert_array_equal(read.columns["level"], [np.nan] * 6 + [1] * 6)
    (tmp_path / "captions" / "train-00000-of-00002.parquet").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match="'train' should have shards 0 to 1, but of number 0 there is none"):
        EmbeddingStore(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "captions" / "train.parquet")
    with pytest.raises(ValueError, match="train.parquet does not belong with train-00001-of-00002.parquet"):
        EmbeddingStore(tmp_path)


def test_a_store_that_was_replaced_is_not_mixed_with_the_one_before(store):
    EmbeddingStore.write(store.path, {"train": make_split(2), "test": make_split(3)}, {"backbone": "y"})
    with pytest.raises(ValueError, match="was replaced after it was opened: open it again"):
        store.split("train")


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
