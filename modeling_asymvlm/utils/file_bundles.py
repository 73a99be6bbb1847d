"""Folders of files that belong together: saved as one, and read as they were saved or not at all."""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from .disk_errors import disk_errors_named
from .durable_files import check_replaceable, find_folder, flush_to_disk, is_left_aside, sha256_of, writing_folder
from .json_files import read_record, write_record


Mapped = TypeVar("Mapped")

SECONDS_BETWEEN_LOOKS = 0.05
LOOKS = 40


@dataclass(frozen=True)
class BundleKind:
    """
    A kind of folder.

    Args:
        name (`str`): as in messages, for instance `"index"`.
        manifest (`str`): the file that says what the folder holds, with its identity and, of each file, size and
            SHA-256.
        files (`tuple[str, ...]`): names of all others; not each is there in every folder.
        format (`int`): of the manifest.
        remedy (`str`): a sentence on what to do about damage.
    """

    name: str
    manifest: str
    files: tuple[str, ...]
    format: int
    remedy: str


@contextmanager
def writing_bundle(path: Path, kind: BundleKind, content: Mapping[str, Any]) -> Iterator[Path]:
    """
    Gives an empty folder, to be filled with files of the kind, and puts it in place of one that was saved at `path`
    before. An error or an interruption leaves that one; whoever reads meanwhile gets the one or the other.

    Args:
        path (`Path`): of the folder.
        kind (`BundleKind`): what it is.
        content (`Mapping[str, Any]`): what else the manifest is to say.

    Raises:
        FileExistsError: if anything but a folder of this kind or an empty one is at `path`.
        OSError: if the disk is full or refuses, or another process writes there for too long.
    """

    def check(found: Path) -> None:
        check_replaceable(found, kind.manifest, (kind.manifest, *kind.files))

    with writing_folder(path, check, kind.manifest) as folder:
        yield folder
        files = {}
        for file in sorted(folder.iterdir()):
            file.chmod(folder.stat().st_mode & 0o666)  # safetensors would keep others from reading
            flush_to_disk(file)
            files[file.name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
        record = {"identity": uuid.uuid4().hex, "files": files, **content}
        write_record(folder / kind.manifest, record, format=kind.format)


class Bundle:
    """
    An opened folder of files that belong together, which stay those that were opened, whatever happens to the folder.

    Attributes:
        content (`dict`): what the manifest says.
    """

    def __init__(self, path: Path, kind: BundleKind, content: dict[str, Any], opened: dict[str, BufferedReader]):
        self.path, self.kind, self.content, self._opened = path, kind, content, opened

    def verified(self, name: str) -> BufferedReader:
        """
        One of the files, at its beginning, after all of it was read and compared with its SHA-256.

        Raises:
            ValueError: if it is missing or not as it was written.
            OSError: if it may not be read.
        """
        if name not in self._opened:
            raise self.damaged(f"it has no {name}")
        file, written = self._opened[name], self.content["files"][name]
        with disk_errors_named(self.path / name):
            file.seek(0, 2)
            if file.tell() != written["size"]:
                raise self.damaged(f"{name} is {file.tell()} bytes long, but was written with {written['size']}")
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != written["sha256"]:
                raise self.damaged(f"{name} is not as it was written (its SHA-256 differs)")
            file.seek(0)
        return file

    def mapped(self, name: str, open_path: Callable[[str], Mapped]) -> Mapped:
        """
        What `open_path` makes of the path of a verified file, for libraries that map a file and take no open one.

        Raises:
            ValueError, OSError: as [`verified`].
            BlockingIOError: if another file is at the path by now.
        """
        file = self.verified(name)
        found = open_path(str(self.path / name))
        if not os.path.samestat(os.fstat(file.fileno()), (self.path / name).stat()):
            raise BlockingIOError(f"The {self.kind.name} at {str(self.path)!r} was replaced meanwhile: open it again.")
        return found

    def damaged(self, reason: object) -> ValueError:
        """The error for a folder whose files are not what they should be."""
        return ValueError(
            f"The {self.kind.name} at {str(self.path)!r} is incomplete or damaged: {reason}. {self.kind.remedy}"
        )


@contextmanager
def opened_bundle(path: Path, kind: BundleKind) -> Iterator[Bundle]:
    """
    Opens all files of a folder that [`writing_bundle`] wrote. While another process replaces it, waits for its end.

    Raises:
        FileNotFoundError: if there is none of this kind at `path`.
        ValueError: if its manifest is damaged or of another format, or a file is missing.
        OSError: if a file may not be read.
    """
    manifest = path / kind.manifest
    with ExitStack() as files:
        for look in range(LOOKS):
            find_folder(path, kind.manifest)
            before = _state(manifest)
            try:
                bundle = _open(path, kind, files)
                break
            except (OSError, ValueError):
                if look == LOOKS - 1 or (_state(manifest) == before and not is_left_aside(path)):
                    raise
            time.sleep(SECONDS_BETWEEN_LOOKS)
        yield bundle


def _state(manifest: Path) -> tuple[int, int] | None:
    try:
        state = manifest.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def _open(path: Path, kind: BundleKind, files: ExitStack) -> Bundle:
    manifest = path / kind.manifest
    with disk_errors_named(manifest):
        if not manifest.is_file():
            raise FileNotFoundError(f"There is no {kind.name} at {str(path)!r}: it has no {kind.manifest}.")
    content = read_record(manifest, format=kind.format, remedy=kind.remedy)
    opened: dict[str, BufferedReader] = {}
    for name in content["files"]:
        with disk_errors_named(path / name):
            try:
                opened[name] = files.enter_context((path / name).open("rb"))
            except FileNotFoundError:
                raise ValueError(
                    f"The {kind.name} at {str(path)!r} is incomplete or damaged: it has no {name}. {kind.remedy}"
                ) from None
    if read_record(manifest, format=kind.format, remedy=kind.remedy)["identity"] != content["identity"]:
        raise BlockingIOError(f"The {kind.name} at {str(path)!r} is replaced again and again: try again later.")
    return Bundle(path, kind, content, opened)
