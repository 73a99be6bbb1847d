"""What a disk refuses, in one sentence with the path, whichever library was writing or reading."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


REASONS = {
    errno.ENOSPC: "The disk is full: make room and try again",
    errno.EDQUOT: "The quota of this user is used up: make room and try again",
    errno.EACCES: "This user has no permission: ask the owner for it, or choose another place",
    errno.EPERM: "This user has no permission: ask the owner for it, or choose another place",
    errno.EROFS: "The file system is read-only: choose another place",
    errno.ENOTDIR: "A part of this path is a file where a folder is needed: choose another place",
    errno.EEXIST: "A file stands where a folder is needed: choose another place",
    errno.EISDIR: "This is a folder where a file is needed: choose another name",
    errno.EIO: "The disk or the network drive failed: try again, or choose another place",
}


@contextmanager
def disk_errors_named(path: str | Path) -> Iterator[None]:
    """
    Within it, an error that means that the disk refused becomes an `OSError` of the same number, with what to do and
    the path. Libraries in C++ and Rust raise errors of their own for it.

    Args:
        path (`str` or `Path`): what is written or read, named where the error names none.

    Raises:
        OSError: such as `PermissionError`, `NotADirectoryError`, or with the number `ENOSPC`.
    """
    try:
        yield
    except Exception as error:
        number = disk_error(error)
        if number is None or getattr(error, "strerror", None) == REASONS[number]:
            raise
        raise OSError(number, REASONS[number], str(getattr(error, "filename", None) or path)) from error


def disk_error(error: BaseException) -> int | None:
    """The number of `REASONS` that an error means, or `None`."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in REASONS else None
    return next((number for number in REASONS if os.strerror(number) in str(error)), None)
