"""Folders that take the place of others whole or not at all, and never of what is not theirs."""

from pathlib import Path

import pytest

from modeling_asymvlm.durable_files import folder_in_place, replace_folder


FILES = {"a.json", "b.bin"}


def write(path: Path, content: str) -> None:
    with folder_in_place(path, FILES) as folder:
        (folder / "a.json").write_text(content)
        (folder / "b.bin").write_text(content)


def content(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir()}


def test_a_folder_takes_the_place_of_nothing_of_an_empty_one_and_of_one_of_its_kind(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "deep" / "new", tmp_path / "empty"):
        for text in ("first", "second"):
            write(path, text)
            assert content(path) == {"a.json": text, "b.bin": text}
            assert [each.name for each in path.parent.glob(f"*{path.name}*")] == [path.name]


def test_what_is_not_its_own_is_never_replaced(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_text("weights")
    (checkpoint / "a.json").write_text("settings")
    (tmp_path / "file").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="holds 'model.safetensors', which saving there would delete"):
        write(checkpoint, "new")
    with pytest.raises(FileExistsError, match="'file'"):
        write(tmp_path / "file", "new")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("renames_before", [0, 1])
def test_an_interrupted_rename_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, renames_before, error):
    write(tmp_path / "it", "old")
    rename, renamed = Path.rename, []

    def interrupted(self, target):
        renamed.append(target)
        if len(renamed) == renames_before + 1:
            raise error("stopped")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(error):
        write(tmp_path / "it", "new")
    assert content(tmp_path / "it") == {"a.json": "old", "b.bin": "old"}
    assert [each.name for each in tmp_path.iterdir()] == ["it"]


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    write(tmp_path / "it", "old")
    with pytest.raises(KeyboardInterrupt), folder_in_place(tmp_path / "it", FILES) as folder:
        (folder / "a.json").write_text("new")
        raise KeyboardInterrupt
    assert content(tmp_path / "it") == {"a.json": "old", "b.bin": "old"}
    assert [each.name for each in tmp_path.iterdir()] == ["it"]


def test_what_a_stopped_machine_left_is_not_deleted_before_there_is_something_new(tmp_path):
    (tmp_path / "it.old").mkdir()
    (tmp_path / "it.old" / "a.json").write_text("old")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "missing", tmp_path / "it")
    assert content(tmp_path / "it") == {"a.json": "old"}
