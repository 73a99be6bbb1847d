"""Folders of files that belong together: the old one or the new one, verified, whoever writes and whatever breaks."""

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from modeling_asymvlm.utils.file_bundles import BundleKind, opened_bundle, writing_bundle


KIND = BundleKind("set", "set.json", ("a.bin", "b.bin"), 7, "Make it again.")


def save(path: Path, number: int) -> None:
    with writing_bundle(path, KIND, {"number": number}) as folder:
        for name in KIND.files:
            (folder / name).write_bytes(bytes([number]) * 5000)


def read(path: Path) -> int:
    """The number of a set, all of whose parts must have it."""
    with opened_bundle(path, KIND) as bundle:
        parts = {bundle.content["number"], *(byte for name in KIND.files for byte in bundle.verified(name).read())}
    (number,) = parts
    return number


def test_what_is_saved_is_read_by_everybody_and_nothing_stands_beside_it(tmp_path):
    before = os.umask(0o027)
    try:
        with writing_bundle(tmp_path / "it", KIND, {}) as folder:
            for name in KIND.files:
                (folder / name).touch(0o600)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "it").iterdir()} == {0o640}
    save(tmp_path / "it", 3)
    assert read(tmp_path / "it") == 3 and os.listdir(tmp_path) == ["it"]


@pytest.mark.parametrize("name", ["set.json", "a.bin", "b.bin"])
def test_any_changed_byte_is_refused_by_name(name, tmp_path):
    save(tmp_path / "it", 3)
    file = tmp_path / "it" / name
    content, generator = file.read_bytes(), np.random.default_rng(0)
    for position in generator.choice(len(content), min(len(content), 300), replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << generator.integers(8)
        file.write_bytes(damaged)
        try:
            json.loads(damaged)
            same = name == "set.json" and json.loads(damaged) == json.loads(content)
        except ValueError:
            same = False
        if not same:  # a change of white space is none
            with pytest.raises(ValueError, match=rf"it.*{name[:3]}|it/set\.json.*Make it again"):
                read(tmp_path / "it")
    for damaged in (content[:-3], content + b"\0", b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="Make it again"):
            read(tmp_path / "it")
    file.unlink()
    with pytest.raises(FileNotFoundError if name == "set.json" else ValueError, match="no set at|incomplete.*no [ab]"):
        read(tmp_path / "it")


def test_files_of_two_sets_are_not_mixed(tmp_path):
    save(tmp_path / "one", 1)
    save(tmp_path / "two", 2)
    (tmp_path / "one" / "a.bin").replace(tmp_path / "two" / "a.bin")
    with pytest.raises(ValueError, match="a.bin is not as it was written"):
        read(tmp_path / "two")


def test_other_formats_and_older_layouts_say_so(tmp_path):
    save(tmp_path / "it", 1)
    for record, message in (({"format": 8}, "has format 8, but this version reads 7"), ({"format": 7}, "no checksum")):
        (tmp_path / "it" / "set.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "it")


def test_an_opened_set_stays_what_it_was(tmp_path):
    save(tmp_path / "it", 1)
    with opened_bundle(tmp_path / "it", KIND) as bundle:
        save(tmp_path / "it", 2)
        assert set(bundle.verified("b.bin").read()) == {bundle.content["number"]} == {1}
    assert read(tmp_path / "it") == 2


@pytest.mark.parametrize("step", ["before", "between", "first"])
def test_after_a_kill_between_renames_the_finished_one_comes_back_by_itself(step, tmp_path):
    """The states of the disk that a kill leaves, by renames of what was saved."""
    save(tmp_path / "it", 1)
    save(tmp_path / "new", 2)
    if step == "between":
        (tmp_path / "it").rename(tmp_path / ".it.old")
        (tmp_path / "new").rename(tmp_path / ".it.unfinished")
    elif step == "first":
        (tmp_path / "new").rename(tmp_path / ".it.unfinished")
        for file in (tmp_path / "it").iterdir():
            file.unlink()
        (tmp_path / "it").rmdir()
    else:
        (tmp_path / "it").rename(tmp_path / ".it.old")
        (tmp_path / "new").rename(tmp_path / ".it.unfinished")
        (tmp_path / ".it.unfinished" / "set.json").unlink()
    assert read(tmp_path / "it") == (1 if step == "before" else 2)
    save(tmp_path / "it", 3)
    assert read(tmp_path / "it") == 3 and os.listdir(tmp_path) == ["it"]


def test_savers_and_readers_in_a_race_see_whole_sets(tmp_path):
    def save_many(first: int) -> None:
        for turn in range(30):
            save(tmp_path / "it", first + turn)

    save(tmp_path / "it", 0)
    seen = set()
    with ThreadPoolExecutor(2) as threads:
        savers = [threads.submit(save_many, first) for first in (1, 101)]
        while not all(saver.done() for saver in savers):
            seen.add(read(tmp_path / "it"))
    assert [saver.result() for saver in savers] == [None, None] and len(seen) > 2
    assert read(tmp_path / "it") in (30, 130) and os.listdir(tmp_path) == ["it"]


def test_whoever_waits_too_long_for_another_writer_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_asymvlm.utils.durable_files.SECONDS_TO_WAIT", 0.1)
    entered, leave = threading.Event(), threading.Event()

    def slow() -> None:
        with writing_bundle(tmp_path / "it", KIND, {}):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=slow)
    thread.start()
    entered.wait()
    try:
        with pytest.raises(TimeoutError, match="Another process has been writing .*it' .*: wait for it or end it"):
            save(tmp_path / "it", 2)
    finally:
        leave.set()
        thread.join()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_is_named_and_the_old_one_stays(number, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    save(tmp_path / "it", 1)
    with monkeypatch.context() as context:
        context.setattr(Path, "write_bytes", refuse)
        with pytest.raises(OSError, match=r"(make room|permission|read-only).*it") as told:
            save(tmp_path / "it", 2)
    assert told.value.errno == number
    assert read(tmp_path / "it") == 1 and os.listdir(tmp_path) == ["it"]


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    save(tmp_path / "it", 1)
    opened = Path.open

    def refuse(self, *arguments, **keywords):
        if self.name == "b.bin":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match="has no permission: ask the owner.*b.bin"):
        read(tmp_path / "it")


def test_a_place_within_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="A file stands where a folder is needed.*file"):
        save(tmp_path / "file" / "it", 1)
