"""The text of files that others wrote: UTF-8, with or without a byte order mark; what else there is is named."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


SURROGATE = re.compile("[\ud800-\udfff]")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BLANK = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


def text_lines(file: Path, *, newline: str = "\n") -> Iterator[str]:
    """
    The lines of a file with their ends. Only line feeds end a line, or also carriage returns with `newline=""`: never
    the vertical tabs and separators of Unicode that stand within texts.

    Raises:
        ValueError: for a line that is not UTF-8 or holds NUL.
    """
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as opened:
        for number, line in enumerate(opened, start=1):
            invalid = SURROGATE.search(line)
            if invalid:
                byte = f"byte 0x{ord(invalid[0]) & 0xFF:02x}"
                raise ValueError(
                    f"{file} cannot be read: line {number} is not UTF-8 ({byte}{_resembles(file)}). Save it as UTF-8."
                )
            if "\0" in line:
                raise ValueError(
                    f"{file} cannot be read: line {number} holds NUL, as UTF-16 and damaged files do. Save it as "
                    "UTF-8, or fetch it again."
                )
            yield line


def _resembles(file: Path) -> str:
    with file.open("rb") as opened:
        return "; it begins as UTF-16 does" if opened.read(2) in UTF_16_MARKS else ""


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text. Raises `ValueError` that names the place."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}.") from error
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply to be read.") from None


def json_values(file: Path) -> Iterator[Any]:
    """
    The values of a file of JSON Lines, of a JSON list, or of JSON objects one after another. The lines of JSON Lines
    are read one by one, other files as a whole.

    Raises:
        ValueError: for an empty file, and for what is not JSON.
    """
    lines = enumerate(text_lines(file), start=1)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if not first:
        raise ValueError(f"{file} cannot be read: it is empty.")
    value = _object_of(first)
    if value is None:
        yield from _values_of_text("".join([first, *(line for _, line in lines)]), number, file)
        return
    yield value
    for number, line in lines:
        if line.strip():
            yield parse_json(line, f"{file} cannot be read: line {number}")


def _object_of(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _values_of_text(text: str, first_line: int, file: Path) -> Iterator[Any]:
    position = _after_blanks(text, 0)
    is_list = text[position] == "["
    position = _after_blanks(text, position + is_list)
    while position < len(text) and not (is_list and text[position] == "]"):
        try:
            value, position = DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            position = getattr(error, "pos", position)
            said = "it is nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
            raise _not_json(text, position, first_line, file, said) from error
        yield value
        position = _after_blanks(text, position)
        if is_list and text[position : position + 1] not in (",", "]"):
            raise _not_json(text, position, first_line, file, "a comma or a bracket must follow")
        if is_list and text[position] == ",":
            position = _after_blanks(text, position + 1)
            if text[position : position + 1] == "]":
                raise _not_json(text, position, first_line, file, "a value must follow the comma")
    if is_list and _after_blanks(text, position + 1) < len(text) or is_list and position >= len(text):
        raise _not_json(text, position, first_line, file, "the list does not end where the file does")


def _after_blanks(text: str, position: int) -> int:
    return BLANK.match(text, position).end()  # type: ignore[union-attr]


def _not_json(text: str, position: int, first_line: int, file: Path, said: object) -> ValueError:
    line = first_line + text.count("\n", 0, position)
    return ValueError(f"{file} cannot be read: line {line} is not JSON: {said}. Is the file complete?")
