"""Who builds a store: locks that the operating system frees when their process ends, however it ends."""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


class BuildLocks:
    """
    The locks of one process that builds a store, in the folder `.{name}.locks` beside it.

    Args:
        path (`Path`): the store.
    """

    def __init__(self, path: Path):
        self._folder = path.with_name(f".{path.name}.locks")
        self._owner = f"process {os.getpid()} on {socket.gethostname()}"
        self._member = FileLock(self._folder / f"{self._owner.replace(' ', '_')}_{uuid.uuid4().hex[:8]}.member")

    def __enter__(self) -> "BuildLocks":
        self._folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave()

    def folder(self) -> BaseFileLock:
        """Waits until no other process changes which builds there are; to be used with `with`."""
        return FileLock(self._folder / "store.lock")

    def join(self) -> None:
        """Makes this process one of the builders, until its end."""
        self._member.acquire()

    def leave(self) -> None:
        """Ends what [`join`] began."""
        if self._member.is_locked:
            Path(self._member.lock_file).unlink(missing_ok=True)
            self._member.release()

    def others(self) -> list[str]:
        """The other processes that are building now. What dead ones left is removed."""
        alive = []
        for file in sorted(self._folder.glob("*.member")):
            if file == Path(self._member.lock_file):
                continue
            lock = FileLock(file)
            try:
                with lock.acquire(timeout=0):
                    file.unlink(missing_ok=True)
            except Timeout:
                alive.append(file.stem.rpartition("_")[0].replace("_", " "))
        return alive

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process alone works on a shard, until the end of the context. Whoever comes next has to look
        whether the shard is finished."""
        lock = FileLock(self._folder / f"{name}.claim")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
