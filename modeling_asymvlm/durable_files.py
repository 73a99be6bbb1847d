"""Writing files and folders so that they are there whole or not at all, whenever the process or the machine stops."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, read in small pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def move_into_place(source: Path, target: Path) -> None:
    """Renames a finished file to its lasting name, once its content is on the disk."""
    flush_to_disk(source)
    source.replace(target)
    flush_to_disk(target.parent)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON in one step, replacing what was there."""
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
        move_into_place(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_in_place(path: Path, files: set[str]) -> Iterator[Path]:
    """
    A new folder, to be filled within the context, that takes the place of what is at `path` at its end. Whatever stops
    it leaves what was there, and nothing else.

    Args:
        path (`Path`): a folder that does not exist, is empty, or holds nothing but `files`.
        files (`set[str]`): names of the files of such a folder.

    Raises:
        FileExistsError: if there is anything else at `path`, which would be lost.
    """
    foreign = sorted({file.name for file in path.iterdir()} - files) if path.is_dir() else [path.name]
    if path.exists() and foreign:
        raise FileExistsError(
            f"{str(path)!r} holds {foreign[0]!r}, which saving there would delete: name a folder of its own."
        )
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for file in unfinished.iterdir():
            flush_to_disk(file)
        replace_folder(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def replace_folder(finished: Path, path: Path) -> None:
    """
    Puts a finished folder in place of whatever is at `path`. An error or an interruption leaves what was there; if the
    machine stops in between, it lies beside `path` with the ending `.old`, and `finished` is whole.
    """
    old = path.with_name(path.name + ".old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        finished.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    flush_to_disk(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, or a copy where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def flush_to_disk(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    with contextlib.suppress(PermissionError):  # Windows does not open folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
