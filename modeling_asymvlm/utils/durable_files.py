"""Writing files and folders so that they are there whole or not at all, whenever the process or the machine stops."""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, read in small pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def move_into_place(source: Path, target: Path) -> None:
    """Renames a finished file to its lasting name, once its content is on the disk."""
    flush_to_disk(source)
    source.replace(target)
    flush_to_disk(target.parent)


def write_file(file: Path, content: bytes) -> None:
    """Writes a file in one step, replacing what was there; an error or an interruption leaves that."""
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(content)
        move_into_place(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def replace_folder(finished: Path, path: Path) -> None:
    """
    Puts a finished folder in place of whatever is at `path`, or, after an error or an interruption, leaves what was
    there. A kill between the two renames leaves `finished` and, beside it, the old folder under a hidden name.
    """
    old = path.with_name(f".{path.name}.old")
    try:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        finished.rename(path)
        flush_to_disk(path.parent)
    finally:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(path)


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """
    Gives an empty folder beside `path`, to be filled, and puts it in place of whatever is at `path`. After an error or
    an interruption, what was there is there still, and nothing is left of the new folder.
    """
    path = path.resolve()  # a link stays, and the folder that it leads to is replaced
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        replace_folder(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_replaceable(path: Path, manifest: str, files: Collection[str]) -> None:
    """
    Refuses to replace what is not ours.

    Args:
        path (`Path`): may be missing, an empty folder, or a folder that holds the manifest and no more than `files`.
        manifest (`str`): the name of the file that a folder of this kind is known by.
        files (`Collection[str]`): the names of all files of such a folder.

    Raises:
        FileExistsError: for anything else.
    """
    reason = None
    if path.is_dir():
        found = {entry.name for entry in path.iterdir()}
        if foreign := sorted(found - set(files)):
            reason = f"holds {foreign[0]!r}"
        elif found and manifest not in found:
            reason = f"has no {manifest}"
    elif path.exists():
        reason = "is a file"
    if reason:
        raise FileExistsError(
            f"{str(path)!r} {reason} and is not replaced: save to a new path, an empty folder, or one that holds "
            f"nothing but {manifest} and what was saved with it."
        )


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
