"""`store.json`, which says what a store was made from and how each of its files was written."""

from pathlib import Path
from typing import Any

from ..utils.json_files import read_record, write_record
from .shards import FEATURE_COLUMNS
from .verification import VERIFIED_FILE


MANIFEST_FILE = "store.json"
FORMAT = 3
REMEDY = "Restore it, or remove the folder and make the features again."


def read_manifest(folder: Path) -> dict[str, Any]:
    """
    What `store.json` says, or nothing where there is none.

    Raises:
        ValueError: if it is damaged or of another format.
        OSError: if it may not be read.
    """
    file = folder / MANIFEST_FILE
    return read_record(file, format=FORMAT, remedy=REMEDY) if file.is_file() else {}


def write_manifest(folder: Path, **content: Any) -> None:
    """Writes `store.json`: `fingerprint`, and per shard what `write_shard` gave, its `split`, and more."""
    write_record(folder / MANIFEST_FILE, content, format=FORMAT)


def check_is_store(path: Path) -> None:
    """
    Refuses to replace what is not ours.

    Raises:
        FileExistsError: for anything but a store with its `store.json`, an empty folder, or nothing.
    """
    reason = None
    if path.is_dir():
        if foreign := _foreign(path, (*FEATURE_COLUMNS, MANIFEST_FILE, VERIFIED_FILE)):
            reason = f"holds {foreign!r}"
        elif any(path.iterdir()) and not (path / MANIFEST_FILE).is_file():
            reason = f"has no {MANIFEST_FILE}"
    elif path.exists():
        reason = "is a file"
    if reason:
        raise FileExistsError(
            f"{str(path)!r} {reason} and is not replaced: name a new path, an empty folder, or one that holds nothing "
            "but a store that was made here."
        )


def check_is_build(path: Path, files: tuple[str, ...]) -> None:
    """Raises `FileExistsError` for a folder at the place of an unfinished store that holds more than `files`."""
    if path.is_dir():
        foreign = _foreign(path, (*FEATURE_COLUMNS, MANIFEST_FILE, VERIFIED_FILE, *files))
    else:
        foreign = path.name if path.exists() else None
    if foreign is not None:
        raise FileExistsError(
            f"The store is built in {str(path)!r}, which holds {foreign!r} and is not emptied: move that away, or "
            "name another path."
        )


def _foreign(path: Path, names: tuple[str, ...]) -> str | None:
    """The first entry of a folder, or of those of its shards, that no store has. Names of torn files are hidden."""
    for entry in sorted(path.iterdir()):
        if entry.name not in names and not entry.name.startswith(tuple(f".{name}." for name in names)):
            return entry.name
        if entry.name in FEATURE_COLUMNS:
            if not entry.is_dir():
                return entry.name
            for file in sorted(entry.iterdir()):
                if file.suffix != ".parquet" or not file.is_file():
                    return f"{entry.name}/{file.name}"
    return None
