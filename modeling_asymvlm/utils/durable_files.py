"""Writing files and folders so that they are there whole or not at all, whenever the process or the machine stops."""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from .disk_errors import disk_errors_named
from .locks import exclusive


SECONDS_TO_WAIT = 600.0


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
    """
    Writes a file in one step, replacing what was there; an error or an interruption leaves that.

    Raises:
        OSError: if the disk is full or refuses, with the path and what to do.
    """
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with disk_errors_named(file):
        try:
            unfinished.write_bytes(content)
            move_into_place(unfinished, file)
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink()


def replace_folder(finished: Path, path: Path) -> None:
    """
    Puts a finished folder in place of whatever is at `path`, or, after an error or an interruption, leaves what was
    there. A kill between the two renames leaves `finished` and, beside it, the old folder under a hidden name.
    """
    old = _old(path)
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
def writing_folder(path: Path, check: Callable[[Path], None], manifest: str) -> Iterator[Path]:
    """
    Gives an empty folder beside `path`, to be filled, and puts it in place of whatever is at `path`. After an error or
    an interruption, what was there is there still, and nothing is left of the new folder. Of several that write at
    once, each waits for the one before.

    Args:
        path (`Path`): of the folder.
        check (`Callable[[Path], None]`): raises for what is not to be replaced.
        manifest (`str`): the name of the file by which a finished folder is known.

    Raises:
        TimeoutError: if another process or thread has been writing it for ten minutes.
        OSError: if the disk is full or refuses, with the path and what to do.
    """
    path = path.resolve()  # a link stays, and the folder that it leads to is replaced
    unfinished = _unfinished(path)
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing_alone(path):
            recover_folder(path, manifest)
            check(path)
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                unfinished.mkdir()
                yield unfinished
                replace_folder(unfinished, path)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)


def find_folder(path: Path, manifest: str) -> None:
    """
    Where nothing is at `path`, because a process was killed between two renames, puts back what it left hidden beside
    it. Waits for a process that is writing there.

    Raises:
        TimeoutError: if another process has been writing it for ten minutes.
    """
    path = path.resolve()
    if not path.exists() and (is_left_aside(path) or (_unfinished(path) / manifest).exists()):
        with disk_errors_named(path), writing_alone(path):
            recover_folder(path, manifest)


def recover_folder(path: Path, manifest: str) -> None:
    """As [`find_folder`], for whoever writes there alone: the new folder if it was finished, or the one before."""
    unfinished, old = _unfinished(path), _old(path)
    if not path.exists():
        if (unfinished / manifest).exists():  # which is written last
            unfinished.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(path)


def is_left_aside(path: Path) -> bool:
    """Whether a folder that was at `path` stands aside, as while it is replaced."""
    return _old(path.resolve()).exists()


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def writing_alone(path: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of whoever replaces `path`. Raises `TimeoutError` if another holds it for ten minutes."""
    busy = f"Another process has been writing {str(path)!r} for ten minutes: wait for it or end it, and try again."
    return exclusive(path.with_name(f".{path.name}.lock"), busy, timeout=SECONDS_TO_WAIT)


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
