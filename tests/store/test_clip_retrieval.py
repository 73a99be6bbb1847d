"""Features of clip-retrieval as a store: values, grouping, splits, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling_asymvlm.commands import train
from modeling_asymvlm.commands.convert import main
from modeling_asymvlm.store.clip_retrieval import ClipRetrievalFeatures, convert
from modeling_asymvlm.store.embedding_store import EmbeddingStore


def unit_rows(number: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((number, 6))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def write_folder(folder, rows_per_part: int = 40, parts: int = 3, change=lambda part, image, text, metadata: None):
    """Parts 0, 1, 2, ... of one caption an image, as clip-retrieval writes them."""
    for part in range(parts):
        image, text = unit_rows(rows_per_part, 2 * part), unit_rows(rows_per_part, 2 * part + 1)
        ids = [f"{part:05}{row:04}" for row in range(rows_per_part)]
        metadata = {"image_path": ids, "caption": [f"caption {image_id}" for image_id in ids], "width": [3] * len(ids)}
        change(part, image, text, metadata)
        for name, values in (("img_emb", image), ("text_emb", text)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            np.save(folder / name / f"{name}_{part}.npy", values)
        (folder / "metadata").mkdir(exist_ok=True)
        pq.write_table(pa.table(metadata), folder / "metadata" / f"metadata_{part}.parquet")
    return folder


def test_every_row_is_in_one_split_with_its_own_features(tmp_path):
    folder = write_folder(tmp_path / "features", parts=12)
    store, num_left_out = convert(folder, tmp_path / "store", held_out_fraction=0.2, seed=1)
    rows = {}
    for name in ("train", "validation", "test"):
        split = store.split(name)
        for position, row in enumerate(split.text_image_index.tolist()):
            assert split.captions[position] == f"caption {split.image_ids[row]}"
            rows[split.image_ids[row]] = (split.image_features[row], split.text_features[position])
    assert num_left_out == 0 and len(rows) == 12 * 40
    for part in (0, 2, 10, 11):  # 10 and 11 come after 2, not after 1
        for row in (0, 39):
            image, text = rows[f"{part:05}{row:04}"]
            assert np.array_equal(image.numpy(), unit_rows(40, 2 * part)[row])
            assert np.array_equal(text.numpy(), unit_rows(40, 2 * part + 1)[row])
    assert store.fingerprint == {"source": "clip-retrieval", "normalized": True}


def test_rows_of_one_image_share_it_and_rows_without_caption_are_counted(tmp_path):
    def change(part, image, text, metadata):
        image[5] = image[4]
        metadata["image_path"][5] = metadata["image_path"][4]
        metadata["caption"][7:10] = [None, "", " "]

    features = ClipRetrievalFeatures(write_folder(tmp_path / "features", change=change))
    split = features.read(1)
    assert (len(split.image_ids), len(split.captions), features.num_left_out) == (36, 37, 3)
    assert split.text_image_index[4] == split.text_image_index[5] == 4
    assert split.text_image_index[6] == 5 and split.image_ids[5] == "000010006"
    assert np.array_equal(split.image_features[5].numpy(), unit_rows(40, 2)[6])


def test_splits_do_not_depend_on_how_the_rows_are_parted(tmp_path):
    names = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        for part in range(parts):
            size = 40 // parts
            ids = [f"{row:04}" for row in range(part * size, part * size + size)]
            for name in ("img_emb", "text_emb"):
                (folder / name).mkdir(parents=True, exist_ok=True)
                np.save(folder / name / f"{name}_{part}.npy", unit_rows(size, part))
            (folder / "metadata").mkdir(exist_ok=True)
            pq.write_table(pa.table({"key": ids, "caption": ids}), folder / "metadata" / f"metadata_{part}.parquet")
        store, _ = convert(folder, tmp_path / f"store-{parts}", held_out_fraction=0.3)
        names.append({split: store.split(split).image_ids for split in store.splits})
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, i, t, m: i.__setitem__((3, 1), np.nan), r"img_emb_0.npy: row 3 is NaN or infinite"),
        (
            lambda p, i, t, m: m["image_path"].__setitem__(5, m["image_path"][4]),
            "row 5 has other features than an earl",
        ),
        (lambda p, i, t, m: m["image_path"].__setitem__(5, "same"), "2 values of 'image_path' stand in several files"),
        (lambda p, i, t, m: m["image_path"].__setitem__(5, None), "'image_path' is empty in 1 rows"),
        (lambda p, i, t, m: m.update(path=m.pop("image_path")), "no column 'image_path'; .*image_id_column="),
        (lambda p, i, t, m: m.pop("caption"), "no column 'caption'"),
        (
            lambda p, i, t, m: [column.pop() for column in m.values()],
            r"do not belong together: .* \(40, 6\), \(40, 6\)",
        ),
        (lambda p, i, t, m: i.fill(0) or m.update(caption=[None] * 40), "would have 0 of the pairs"),
    ],
)
def test_features_that_do_not_fit_are_named(change, message, tmp_path):
    folder = write_folder(tmp_path / "features", change=change)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_missing_and_damaged_files_are_named(tmp_path):
    folder = write_folder(tmp_path / "features")
    file = folder / "text_emb" / "text_emb_1.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-50])
    with pytest.raises(ValueError, match="text_emb_1.npy cannot be read"):
        convert(folder, tmp_path / "store")
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="text_emb_1.npy cannot be read: .*Python objects"):
        convert(folder, tmp_path / "store")
    np.save(file, np.arange(6))
    with pytest.raises(ValueError, match=r"must hold a matrix of floating-point numbers, but has int64 \(6,\)"):
        convert(folder, tmp_path / "store")
    file.unlink()
    with pytest.raises(ValueError, match="text_emb' lacks number 1"):
        convert(folder, tmp_path / "store")
    with pytest.raises(ValueError, match="holds no features of clip-retrieval"):
        convert(tmp_path, tmp_path / "store")


def test_features_are_mapped_not_read(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "features")
    loaded = []
    load = np.load

    def noted(*arguments, **keywords):
        loaded.append(keywords)
        return load(*arguments, **keywords)

    monkeypatch.setattr(np, "load", noted)
    features = ClipRetrievalFeatures(folder)
    assert loaded == []
    features.read(0)
    assert loaded == [{"mmap_mode": "r", "allow_pickle": False}] * 2


def test_the_command_converts_and_the_head_is_trained_on_the_store(tmp_path, capsys):
    folder = write_folder(tmp_path / "features", rows_per_part=60)
    assert main([str(folder), str(tmp_path / "store"), "--held_out_fraction", "0.2"]) == 0
    printed = capsys.readouterr().out
    sizes = {name: len(EmbeddingStore(tmp_path / "store").split(name).captions) for name in ("train", "test")}
    assert f"train: {sizes['train']} images, {sizes['train']} captions, 6 dimensions" in printed
    assert "All features have unit length: give the head normalised features" in printed
    with pytest.raises(SystemExit) as exit_:
        main([str(folder), str(tmp_path / "store")])
    assert exit_.value.code == 2
    assert "store' exists already" in capsys.readouterr().err
    arguments = ["--embeddings", str(tmp_path / "store"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_:
        train.main([*arguments, "--model_name_or_path", "some/model"])
    assert exit_.value.code == 2
    assert "holds features of unit length, as a backbone does not give them" in capsys.readouterr().err
    train.main([*arguments, "--num_train_epochs", "1", "--disable_tqdm", "true"])
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["test"]["num_captions"] == sizes["test"]


def test_raw_features_are_not_taken_for_normalised_ones(tmp_path):
    folder = write_folder(tmp_path / "features", change=lambda part, image, text, metadata: text.__imul__(3))
    store, _ = convert(folder, tmp_path / "store")
    assert store.fingerprint["normalized"] is False
    norms = torch.linalg.vector_norm(store.split("train").text_features[:], dim=1)
    assert torch.allclose(norms, torch.tensor(3.0), atol=0.02)
