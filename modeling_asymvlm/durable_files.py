"""Writing files and folders so that they are there whole or not at all, whenever the process or the machine stops."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
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


def replace_folder(finished: Path, path: Path) -> None:
    """Puts a finished folder in place of whatever is at `path`. A stop in between leaves at least `finished`."""
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    finished.rename(path)
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
