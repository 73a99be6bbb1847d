"""Reading and writing JSON files, with errors that name the file and what to do."""

import hashlib
import json
from pathlib import Path
from typing import Any

from .disk_errors import disk_errors_named
from .durable_files import write_file


# Larger files are data, not settings or records: to parse one takes several times its size in memory.
MAX_BYTES = 2**28
# Deeper than anything that people or programs write, and within Python's stack for whatever walks through it.
MAX_DEPTH = 100
MANUAL_REMEDY = "Restore it, or make it again."


def read_json(file: str | Path, *, remedy: str = MANUAL_REMEDY, max_bytes: int = MAX_BYTES) -> Any:
    """
    What a JSON file holds.

    Args:
        file (`str` or `Path`): the file, in UTF-8.
        remedy (`str`, *optional*): a sentence on what to do about a damaged file, for the message.
        max_bytes (`int`, *optional*, defaults to 256 MiB): the largest file that is read.

    Raises:
        OSError: if the file is not there or cannot be read.
        ValueError: if it is not JSON, nested more than 100 deep, or too large. Where the parser says what is wrong,
            its `json.JSONDecodeError` is the cause.
    """
    file = Path(file)
    with disk_errors_named(file), file.open("rb") as opened:
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{str(file)!r} is larger than {max_bytes:,} bytes, the most that is read as JSON. {remedy}")
    return parse_json(content, repr(str(file)), remedy=remedy)


def parse_json(content: bytes | str, source: str, *, remedy: str = MANUAL_REMEDY) -> Any:
    """
    What JSON says.

    Args:
        content (`bytes` or `str`): bytes in UTF-8.
        source (`str`): where it stands, for the message.
        remedy (`str`, *optional*): a sentence on what to do about damage, for the message.

    Raises:
        ValueError: as [`read_json`].
    """
    try:
        found = json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
        too_deep = _is_deeper_than(found, MAX_DEPTH)
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}. {remedy}") from error
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"{source} is nested too deeply to be read, more than {MAX_DEPTH} levels. {remedy}")
    return found


def _is_deeper_than(content: Any, most: int) -> bool:
    level = [content]
    for _ in range(most + 1):
        level = [
            each
            for part in level
            if isinstance(part, dict | list)
            for each in (part.values() if isinstance(part, dict) else part)
            if isinstance(each, dict | list)
        ]
        if not level:
            return False
    return True


def write_json(file: str | Path, content: Any, *, allow_nan: bool = True) -> None:
    """
    Writes JSON in one step, replacing what was there: UTF-8, indented by two, with a line feed at the end.

    Args:
        file (`str` or `Path`): where to write; an error or an interruption leaves what was there.
        content: of dictionaries, lists, tuples, strings, numbers, booleans and `None`.
        allow_nan (`bool`, *optional*, defaults to `True`): if `False`, NaN and infinity are refused, which no other
            reader of JSON than Python's knows.

    Raises:
        TypeError: for anything else in the content.
        ValueError: for NaN or infinity where they are refused.
        OSError: if the disk is full or refuses.
    """
    file = Path(file)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n"
    # Names of files may hold lone surrogates, which UTF-8 has not: backslashreplace writes them as JSON does.
    write_file(file, text.encode("utf-8", "backslashreplace"))


def write_record(file: str | Path, content: dict[str, Any], *, format: int) -> None:
    """Writes a JSON object with its `format` and a `checksum` of all the rest; errors as of [`write_json`]."""
    record = json.loads(json.dumps({"format": format, **content}))  # keys as they will be read
    write_json(file, {**record, "checksum": _checksum(record)})


def read_record(file: str | Path, *, format: int, remedy: str = MANUAL_REMEDY) -> dict[str, Any]:
    """
    What [`write_record`] wrote, without `format` and `checksum`.

    Raises:
        OSError: if the file is not there or cannot be read.
        ValueError: if it is damaged in any way, was changed by hand, or is of another format.
    """
    record = read_json(file, remedy=remedy)
    if not isinstance(record, dict):
        raise ValueError(f"{str(file)!r} is damaged: it holds no JSON object. {remedy}")
    found = record.get("format")
    if type(found) is not int or found != format:
        raise ValueError(f"{str(file)!r} has format {found!r}, but this version reads {format}. {remedy}")
    checksum = record.pop("checksum", None)
    if checksum is None:
        raise ValueError(
            f"{str(file)!r} has no checksum: it is damaged, or of an older version that is not read any more. {remedy}"
        )
    if checksum != _checksum(record):
        raise ValueError(f"{str(file)!r} is damaged or was changed: its checksum is not that of its content. {remedy}")
    del record["format"]
    return record


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
