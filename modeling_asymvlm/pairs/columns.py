"""What a row of a data set must have to be a pair: its columns, its captions, and the file of its image."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from .sources import CAPTION_COLUMNS, CaptionedImage


CAPTION_COLUMN_NAMES = ("caption", "captions", "text")


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
            ValueError: for an address on the web, or a path that leads out of the roots.
        """
        if "://" in path:
            raise ValueError(
                f"{place}: the image is an address, {path!r}. Download the images first, for instance with "
                "img2dataset."
            )
        file = self.path / path
        if self.roots is not None:
            inside = any(file.absolute().is_relative_to(root.absolute()) for root in self.roots)
            if ".." in PurePath(path).parts or not inside:
                raise ValueError(
                    f"{place}: the image {path!r} does not lie in the folder of images "
                    f"{str(self.path)!r}. Name the folder that holds it with image_folder=, or fix the path."
                )
        return file

    def short_path(self, path: str) -> str:
        """A path relative to the folder where it lies in it, and else as it is."""
        return path.removeprefix(self.prefix)

    @cached_property
    def prefix(self) -> str:
        """With what the absolute path of a file in the folder begins."""
        return str(self.path.absolute()) + os.sep


DEFAULT_COLUMNS = PairColumns()


def problem_with(caption: Any) -> str | None:
    """What makes a caption, or a list of captions, no caption; `None` if nothing does."""
    texts = caption if isinstance(caption, list) else [caption]
    if any(text and not isinstance(text, str) for text in texts):
        return "no text"
    return None if texts and all(text and text.strip() for text in texts) else "an empty caption"


def require_captions(caption: Any, place: str, column: str | None) -> list[str]:
    """The captions of a row as a list. Raises `ValueError` that names the place, the column and the value."""
    problem = problem_with(caption)
    if problem is not None:
        raise ValueError(
            f"{place} has {problem}: {column!r} is {caption!r}. Fix or remove the row, or name another column with "
            "caption_column=."
        )
    return caption if isinstance(caption, list) else [caption]


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
            values += [rows[name][position]] * len(texts)
    path = content.get("path") if isinstance(content, dict) else content if isinstance(content, str) else None
    data = content.get("bytes") if isinstance(content, dict) else content if isinstance(content, bytes) else None
    image = folder.file(str(path), place) if data is None else data
    name = folder.short_path(path) if path else PurePath(place).name  # reports name no folder of this machine
    return CaptionedImage(image_id, image, captions, columns, name)
