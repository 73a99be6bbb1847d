"""Reading and writing JSON files, with errors that name the file and what to do."""

import json
from pathlib import Path
from typing import Any

from .durable_files import write_file


# Larger files are data, not settings or records: to parse one takes several times its size in memory.
MAX_BYTES = 2**28


def read_json(file: str | Path, *, remedy: str = "Restore it, or make it again.", max_bytes: int = MAX_BYTES) -> Any:
    """
    What a JSON file holds.

    Args:
        file (`str` or `Path`): the file, in UTF-8.
        remedy (`str`, *optional*): a sentence on what to do about a damaged file, for the message.
        max_bytes (`int`, *optional*, defaults to 256 MiB): the largest file that is read.

    Raises:
        OSError: if the file is not there or cannot be read.
        ValueError: if it is not JSON, nested too deeply for Python, or too large. Where the parser says what is wrong,
            its `json.JSONDecodeError` is the cause.
    """
    file = Path(file)
    with file.open("rb") as opened:
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{str(file)!r} is larger than {max_bytes:,} bytes, the most that is read as JSON. {remedy}")
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}. {remedy}") from error
    except RecursionError:
        raise ValueError(f"{str(file)!r} is nested too deeply to be read. {remedy}") from None


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
    """
    file = Path(file)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n"
    # Names of files may hold lone surrogates, which UTF-8 has not: backslashreplace writes them as JSON does.
    write_file(file, text.encode("utf-8", "backslashreplace"))
