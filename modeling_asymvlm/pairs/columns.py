"""What a row of a data set must have to be a pair: its columns, its captions, and the file of its image."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from .file_text import SURROGATE
from .sources import CAPTION_COLUMNS, CaptionedImage


CAPTION_COLUMN_NAMES = ("caption", "captions", "text")
# Absolute, or with a part that is empty, `.` or `..`. No other way to write the path of a file leads to the same one.
IRREGULAR_PATH = re.compile(r"^/|(^|/)\.{0,2}(/|$)")
LONGEST_PATH = 4096  # that systems know, in characters
SHOWN_CHARACTERS = 120  # of a value, in a message


@dataclass(frozen=True)
class PairColumns:
    """
    Which columns hold what.

    Args:
        image (`str`, *optional*, defaults to `"image"`): images, or their paths.
        caption (`str`, *optional*):
            A string or a list of strings per row. By default the first of caption, captions and text that is there.
        image_id (`str`, *optional*, defaults to `"image_id"`): tells which rows share an image; may be missing.
    """

    image: str = "image"
    caption: str | None = None
    image_id: str = "image_id"

    def found_in(self, names: Sequence[str], source: str) -> "FoundColumns":
        """What of these columns there is. Raises `ValueError` if image or caption are missing."""
        caption = self.caption or next((name for name in CAPTION_COLUMN_NAMES if name in names), "caption")
        for option, column in (("image_column", self.image), ("caption_column", caption)):
            if column not in names:
                raise ValueError(
                    f"{source}: there is no column {column!r}; they have {', '.join(names)}. Name the right one with "
                    f"{option}=."
                )
        image_id = self.image_id if self.image_id in names else None
        return FoundColumns(self.image, caption, image_id, tuple(name for name in CAPTION_COLUMNS if name in names))


@dataclass(frozen=True)
class FoundColumns:
    """
    The columns that data have.

    Args:
        image, caption (`str`): those of images and captions.
        image_id (`str` or `None`): that of image ids, if there is one.
        others (`tuple[str, ...]`): those of `CAPTION_COLUMNS` that are there.
    """

    image: str
    caption: str
    image_id: str | None
    others: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [self.image, self.caption, *([] if self.image_id is None else [self.image_id]), *self.others]


@dataclass(frozen=True)
class ImageFolder:
    """
    What the paths of images are relative to, and where they may lead.

    Args:
        path (`Path`): the folder.
        roots (`Sequence[Path]`, *optional*):
            For paths that others wrote: the folders in which every image must lie. By default it may lie anywhere.
    """

    path: Path
    roots: Sequence[Path] | None = None

    def file(self, path: str, place: str) -> Path:
        """
        The file of an image.

        Args:
            path (`str`): as the data give it.
            place (`str`): where they give it, for the message.

        Raises:
            ValueError: for an address on the web, text that is no path, or a path that leads out of the roots.
        """
        _require_no_content(path, place)
        if "://" in path:
            raise ValueError(
                f"{place}: the image is an address, {shown(path)}. Download the images first, for instance with "
                "img2dataset."
            )
        file = self.path / path
        if self.roots is not None:
            inside = any(file.absolute().is_relative_to(root.absolute()) for root in self.roots)
            if ".." in PurePath(path).parts or not inside:
                raise ValueError(
                    f"{place}: the image {shown(path)} does not lie in the folder of images "
                    f"{str(self.path)!r}. Name the folder that holds it with image_folder=, or fix the path."
                )
        return file

    def identity(self, path: str) -> str:
        """
        What tells the image at a path from others, however the path is written: relative to the folder where it lies
        in it, without `.`, `..` and doubled separators; absolute elsewhere.
        """
        if IRREGULAR_PATH.search(path) is None or "://" in path:
            return path
        whole = os.path.join(self._prefixes[0], path)
        if ".." in PurePath(path).parts:  # which a link before it gives another meaning
            whole = _without_links(whole)
        for normal in (os.path.normpath(whole), _without_links(whole)):
            inside = next((prefix for prefix in self._prefixes if normal.startswith(prefix)), None)
            if inside is not None:
                return normal.removeprefix(inside)
        return normal

    @cached_property
    def _prefixes(self) -> list[str]:
        """With what the absolute path of a file in the folder begins, as it is named and without links."""
        return [os.path.join(folder, "") for folder in (os.path.abspath(self.path), os.path.realpath(self.path))]


def _without_links(path: str) -> str:
    """An absolute path without links on the way to the file, which itself may be one."""
    folder, name = os.path.split(path)
    return os.path.normpath(os.path.join(_real_folder(folder), name))


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


DEFAULT_COLUMNS = PairColumns()


def shown(value: Any) -> str:
    """A value as a message shows it: the beginning of a long one."""
    text = repr(value[: SHOWN_CHARACTERS + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def problem_with(caption: Any) -> str | None:
    """What makes a caption, or a list of captions, no caption; `None` if nothing does."""
    texts = caption if isinstance(caption, list) else [caption]
    if any(text is not None and not isinstance(text, str) for text in texts):
        return "no text"
    if not texts or not all(text and text.strip() for text in texts):
        return "an empty caption"
    return "a lone surrogate, which is no character" if any(SURROGATE.search(text) for text in texts) else None


def require_captions(caption: Any, place: str, column: str | None) -> list[str]:
    """The captions of a row as a list. Raises `ValueError` that names the place, the column and the value."""
    problem = problem_with(caption)
    if problem is not None:
        raise ValueError(
            f"{place} has {problem}: {column!r} is {shown(caption)}. Fix or remove the row, or name another column "
            "with caption_column=."
        )
    return caption if isinstance(caption, list) else [caption]


def require_id(value: Any, place: str, column: str) -> str:
    """An image id as text. Raises `ValueError` for one that is missing, or neither text nor a whole number."""
    if value is None or value == "":
        raise ValueError(f"{place} has no {column!r}. Fill it in, or remove the column.")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(
            f"{place}: {column!r} must hold text or whole numbers, but is {_kind(value)} ({shown(value)}). Name "
            "another column with image_id_column=."
        )
    if isinstance(value, str) and SURROGATE.search(value):
        raise ValueError(f"{place}: {column!r} holds a lone surrogate, which is no character: {shown(value)}. Fix it.")
    return str(value)


def require_path(value: Any, place: str, column: str) -> str:
    """The path of an image out of a file of text. Raises `ValueError` for what is none."""
    path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
    if path is None or path == "":
        raise ValueError(
            f"{place} has no image: {column!r} is {shown(value)}. Fix or remove the row, or name another column with "
            "image_column=."
        )
    if not isinstance(path, str):
        raise ValueError(
            f"{place}: {column!r} must hold images or their paths, but is {_kind(path)} ({shown(path)}). Name another "
            "column with image_column=."
        )
    _require_no_content(path, place)
    if SURROGATE.search(path):
        raise ValueError(f"{place}: the path of the image holds a lone surrogate: {shown(path)}. Rename the file.")
    return path


def _require_no_content(path: str, place: str) -> None:
    if path.startswith("data:") or len(path) > LONGEST_PATH:
        raise ValueError(
            f"{place}: the image is no path but text of {len(path):,} characters, as a picture in base64 is: "
            f"{shown(path)}. Put the pictures into files, or as bytes into parquet."
        )


def require_number(value: Any, place: str, name: str) -> int | float:
    """
    A value of one of `CAPTION_COLUMNS`, which text may spell out. Raises `ValueError` for one that is missing, no
    number, not finite, or has a fraction where whole numbers belong.
    """
    is_whole = pa.types.is_integer(CAPTION_COLUMNS[name])
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or is_whole and number != int(number):
        raise ValueError(
            f"{place}: {name!r} must be a {'whole ' if is_whole else ''}number, but is {shown(value)}. Fix it, or "
            "rename the column."
        )
    return int(number) if is_whole else number


def _kind(value: Any) -> str:
    """What the type of a value is called in a table."""
    try:
        return str(pa.scalar(value).type)
    except (pa.ArrowException, OverflowError):
        return type(value).__name__


def captioned_image(
    image_id: str, content: Any, rows: dict[str, list], caption_column: str, folder: ImageFolder, place: str
) -> CaptionedImage:
    """
    An image out of the rows that share it.

    Args:
        image_id (`str`): its identity.
        content (`bytes`, `str` or `dict`): its bytes, its path, or both as `datasets` gives them.
        rows (`dict`): the values of each column, of `caption_column` and of those of `CAPTION_COLUMNS` that are there.
        caption_column (`str`): where a row has its caption or captions.
        folder (`ImageFolder`): where the path leads.
        place (`str`): where the rows stand, for messages.
    """
    captions: list[str] = []
    columns: dict[str, list] = {name: [] for name in rows if name != caption_column}
    for position, caption in enumerate(rows[caption_column]):
        texts = caption if isinstance(caption, list) else [caption]
        captions += texts
        for name, values in columns.items():
            values += [require_number(rows[name][position], place, name)] * len(texts)
    path = content.get("path") if isinstance(content, dict) else content if isinstance(content, str) else None
    data = content.get("bytes") if isinstance(content, dict) else content if isinstance(content, bytes) else None
    image = folder.file(str(path), place) if data is None else data
    name = folder.identity(path) if path else PurePath(place).name  # reports name no folder of this machine
    return CaptionedImage(image_id, image, captions, columns, name)
