"""Stores that change while they are open, notes that are damaged, kills between renames, and what is not ours."""

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_asymvlm.store import feature_matrix
from modeling_asymvlm.store.builder import StoreBuilder
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore


def make_split(number: int, rows: int = 40) -> EmbeddingSplit:
    """Features, identities and captions that all tell the number."""
    names = [f"{number}-{row}" for row in range(rows)]
    features = torch.full((rows, 6), float(number))
    return EmbeddingSplit(names, features, names, features, torch.arange(rows))


def write(path: Path, number: int, rows: int = 40) -> EmbeddingStore:
    return EmbeddingStore.write(path, {"test": make_split(number, rows)}, {"number": number})


READS = {
    "image_features": lambda split: split.image_features[:].unique().tolist(),
    "text_features": lambda split: split.text_features[[3, 1]].unique().tolist(),
    "image_ids": lambda split: sorted({int(name.partition("-")[0]) for name in split.image_ids}),
    "captions": lambda split: sorted({int(name.partition("-")[0]) for name in split.captions}),
}


@pytest.mark.parametrize("rows", [40, 17])
@pytest.mark.parametrize("limit", [0, 128])
@pytest.mark.parametrize("what", READS)
def test_a_split_whose_store_was_rebuilt_says_so(what, limit, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_matrix, "MAX_OPEN_FILES", limit)
    split = write(tmp_path / "store", 1).split("test")
    sent = pickle.dumps(split.text_features)
    for number in (2, 3, 4):
        write(tmp_path / "store", number, rows)
    if limit and what.endswith("features"):  # read from the files that its check opened
        assert READS[what](split) == [1]
    else:
        with pytest.raises(ValueError, match="was (replaced or changed|removed) after it was opened.*open the store"):
            READS[what](split)
    with pytest.raises(ValueError, match="open the store and its splits again"):
        pickle.loads(sent)[:]
    assert READS[what](EmbeddingStore(tmp_path / "store").split("test")) == [4]


@pytest.mark.parametrize("what", READS)
def test_what_was_read_before_a_rebuild_stays(what, tmp_path):
    split = write(tmp_path / "store", 1).split("test")
    assert READS[what](split) == [1]
    write(tmp_path / "store", 2)
    assert READS[what](split) == [1]


def test_relative_paths_survive_a_change_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    write(Path("store"), 1)
    store = EmbeddingStore("store")
    split = store.split("test")
    monkeypatch.chdir("elsewhere")
    assert all(read(split) == [1] for read in READS.values())
    assert all(read(store.split("test")) == [1] for read in READS.values())


def test_readers_of_a_store_that_is_rebuilt_again_and_again_see_whole_ones(tmp_path):
    write(tmp_path / "store", 1)
    seen = set()
    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(lambda: [write(tmp_path / "store", number) for number in range(2, 32)])
        while not writer.done():
            try:
                split = EmbeddingStore(tmp_path / "store").split("test")
                (number,) = {number for read in READS.values() for number in read(split)}
                seen.add(number)
            except ValueError as error:
                assert "after it was opened" in str(error), error
    assert len(writer.result()) == 30 and seen
    assert READS["captions"](EmbeddingStore(tmp_path / "store").split("test")) == [31]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"null", b'{"images/test.parquet": 3}', b"[" * 100_000, b"\xff"])
def test_a_damaged_note_is_ignored_and_made_anew(note, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_asymvlm.store.verification.CLOCK_TICK", 0)
    store = write(tmp_path / "store", 1)
    (store.path / ".verified.json").write_bytes(note)
    assert READS["captions"](EmbeddingStore(store.path).split("test")) == [1]
    assert set(json.loads((store.path / ".verified.json").read_bytes())) == {
        "images/test.parquet",
        "captions/test.parquet",
    }


@pytest.mark.parametrize("known", [0, 2, 4, None, "3"])
def test_a_manifest_of_another_format_is_refused(known, tmp_path):
    store = write(tmp_path / "store", 1)
    manifest = json.loads((store.path / "store.json").read_text())
    (store.path / "store.json").write_text(json.dumps({**manifest, "format": known}))
    with pytest.raises(ValueError, match=rf"store.json' has format {known!r}, but this version reads 3.*Restore it"):
        EmbeddingStore(store.path)


def test_any_changed_byte_of_the_manifest_is_refused(tmp_path):
    store = write(tmp_path / "store", 1)
    content, generator = (store.path / "store.json").read_bytes(), np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] ^= 1 << generator.integers(8)
        (store.path / "store.json").write_bytes(damaged)
        try:
            assert EmbeddingStore(store.path).manifest == store.manifest  # white space
        except ValueError as error:
            assert "store.json" in str(error) and "Restore it" in str(error)


def test_a_store_that_a_kill_left_aside_comes_back(tmp_path):
    write(tmp_path / "store", 1)
    (tmp_path / "store").rename(tmp_path / ".store.old")
    assert READS["captions"](EmbeddingStore(tmp_path / "store").split("test")) == [1]
    assert os.listdir(tmp_path) == ["store"]
    (tmp_path / "store").rename(tmp_path / ".store.old")
    write(tmp_path / "new", 2)
    (tmp_path / "new").rename(tmp_path / ".store.unfinished")
    assert READS["captions"](EmbeddingStore(tmp_path / "store").split("test")) == [2]
    assert os.listdir(tmp_path) == ["store"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


FOREIGN = ["thesis.tex", "images/picture.png", "captions/notes/a.txt", ".hidden", "store.jsonl", "records/a.json"]


@pytest.mark.parametrize("beside_a_store", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_folders_that_hold_anything_else_are_refused_and_left_alone(name, beside_a_store, tmp_path):
    if beside_a_store:
        write(tmp_path / "it", 1)
    (tmp_path / "it" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "it" / name).write_text("mine")
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=f"it' holds '{name.split('/')[0]}.*is not replaced: name a new path"):
        write(tmp_path / "it", 2)
    with pytest.raises(FileExistsError, match="is not replaced"):
        StoreBuilder(tmp_path / "it", {}, {}, None, dim=2, dtype=torch.float32).build()
    assert content(tmp_path) == before


def test_files_and_features_made_by_hand_are_refused_too(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file and is not replaced"):
        write(tmp_path / "file", 1)
    (write(tmp_path / "store", 1).path / "store.json").unlink()
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="has no store.json and is not replaced"):
        write(tmp_path / "store", 2)
    assert content(tmp_path) == before


def test_a_folder_at_the_place_of_an_unfinished_build_is_not_emptied(tmp_path):
    (tmp_path / "it.unfinished").mkdir()
    (tmp_path / "it.unfinished" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="it.unfinished', which holds 'thesis.tex' and is not emptied"):
        StoreBuilder(tmp_path / "it", {}, {}, None, dim=2, dtype=torch.float32).build()
    assert content(tmp_path) == {"it.unfinished/thesis.tex": b"mine"}
