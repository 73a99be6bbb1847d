"""Folders that are replaced whole or not at all, and never where they are somebody else's."""

import os
from pathlib import Path

import pytest
import torch


pytest.importorskip("faiss")

from modeling_asymvlm.search.image_index import ImageIndex
from modeling_asymvlm.search.text_index import TextIndex
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore
from modeling_asymvlm.utils.durable_files import replace_folder
from modeling_asymvlm.zero_shot.classifier import ZeroShotClassifier


def save_index(path: Path, size: int) -> None:
    index = TextIndex(3, distribution="vmf")
    index.add(torch.ones(size, 3))
    index.save(path)


def save_classifier(path: Path, size: int) -> None:
    ZeroShotClassifier({"a": torch.ones(size, 3)}, distribution="vmf").save(path)


def save_store(path: Path, size: int) -> None:
    rows = torch.arange(size)
    names = [str(row) for row in rows.tolist()]
    EmbeddingStore.write(
        path, {"train": EmbeddingSplit(names, torch.ones(size, 3), names, torch.ones(size, 3), rows)}, {}
    )


SAVERS = {
    "index": (save_index, lambda path: len(TextIndex.load(path))),
    "classifier": (save_classifier, lambda path: len(ZeroShotClassifier.load(path).prompt_embeds)),
    "store": (save_store, lambda path: len(EmbeddingStore(path).split("train").captions)),
}


class InterruptedRename:
    """`os.rename`, interrupted once, before or after the rename of a given number."""

    def __init__(self, number: int, after: bool):
        self.rename, self.left, self.after = os.rename, number, after

    def __call__(self, source, target):
        self.left -= 1
        if self.left == -1 and not self.after:
            raise KeyboardInterrupt
        self.rename(source, target)
        if self.left == -1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_interrupted_at_a_rename_the_old_or_the_new_one_is_there(kind, after, number, tmp_path, monkeypatch):
    save, size_of = SAVERS[kind]
    save(tmp_path / "it", 2)
    with monkeypatch.context() as context:
        context.setattr(os, "rename", InterruptedRename(number, after))
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "it", 3)
    assert size_of(tmp_path / "it") == (3 if (number, after) == (1, True) else 2)
    assert os.listdir(tmp_path) == ["it"]
    save(tmp_path / "it", 4)
    assert size_of(tmp_path / "it") == 4 and os.listdir(tmp_path) == ["it"]


@pytest.mark.parametrize("kind", SAVERS)
def test_an_error_in_writing_leaves_the_old_one_and_nothing_else(kind, tmp_path, monkeypatch):
    save, size_of = SAVERS[kind]
    save(tmp_path / "it", 2)
    with monkeypatch.context() as context:
        context.setattr("modeling_asymvlm.utils.json_files.json.dumps", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(tmp_path / "it", 3)
    assert size_of(tmp_path / "it") == 2 and os.listdir(tmp_path) == ["it"]


def test_a_folder_that_a_kill_left_aside_is_kept_until_there_is_another(tmp_path, monkeypatch):
    for name in ("it", "new", "newer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def killed(source, target):
        raise OSError("killed")

    (tmp_path / "it").rename(tmp_path / ".it.old")  # where a kill between the renames leaves it
    with monkeypatch.context() as context:
        context.setattr(os, "rename", killed)
        with pytest.raises(OSError, match="killed"):
            replace_folder(tmp_path / "new", tmp_path / "it")
    assert os.listdir(tmp_path / ".it.old") == ["it"] and os.listdir(tmp_path / "new") == ["new"]
    replace_folder(tmp_path / "new", tmp_path / "it")
    assert os.listdir(tmp_path / "it") == ["new"] and sorted(os.listdir(tmp_path)) == ["it", "newer"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["index", "classifier"])
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["config.json", "model.safetensors"], "holds 'config.json'"),
        (["index.json", "classifier.json", "notes.txt"], "holds '(classifier|index).json'"),
        (["prompts.safetensors"], "holds 'prompts.safetensors'|has no classifier.json"),
        (["vectors.faiss"], "has no index.json|holds 'vectors.faiss'"),
        (["photos/one.png"], "holds 'photos'"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_alone(kind, names, reason, tmp_path):
    for name in names:
        (tmp_path / "it" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "it" / name).write_text(name)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=f"it' ({reason}) and is not replaced: save to a new path"):
        SAVERS[kind][0](tmp_path / "it", 2)
    assert content(tmp_path) == before


@pytest.mark.parametrize("kind", ["index", "classifier"])
def test_empty_folders_are_filled_links_followed_and_files_and_neighbours_left(kind, tmp_path):
    save, size_of = SAVERS[kind]
    for name in ("it", "it.old", "it.unfinished"):  # copies that somebody may have set aside
        (tmp_path / name).mkdir()
    for name in ("it.old/mine", "it.unfinished/mine", "file"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("it")
    for size, name in ((2, "it"), (3, "link")):
        save(tmp_path / name, size)
        assert size_of(tmp_path / "it") == size
    with pytest.raises(FileExistsError, match="file' is a file and is not replaced"):
        save(tmp_path / "file", 2)
    assert sorted(os.listdir(tmp_path)) == ["file", "it", "it.old", "it.unfinished", "link"]
    assert (tmp_path / "it.old" / "mine").exists() and (tmp_path / "link").is_symlink()


def test_an_index_replaces_one_of_another_kind(tmp_path):
    save_index(tmp_path / "it", 2)
    images = ImageIndex(3, distribution="vmf")
    images.add(torch.eye(3))
    images.save(tmp_path / "it")
    assert len(ImageIndex.load(tmp_path / "it")) == 3
