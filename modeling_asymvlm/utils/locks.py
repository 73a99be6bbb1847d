"""Locks between processes, which the operating system frees however their process ends, and which leave no file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def exclusive(file: Path, busy: str, *, timeout: float = 0.0) -> Iterator[None]:
    """
    Holds the lock of a name until the end of the context.

    Args:
        file (`Path`): the name, in a folder that is there; nothing may stand under it.
        busy (`str`): what to say, and to advise, if another process or thread holds the lock for too long.
        timeout (`float`, *optional*, defaults to 0): how many seconds to wait for it.

    Raises:
        TimeoutError: with `busy`.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise TimeoutError(busy) from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: whoever waits for this file sees that it is gone
        lock.release()
