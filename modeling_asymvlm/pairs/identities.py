"""Whether the rows that claim to be of one image have one picture."""

import hashlib
from pathlib import Path
from typing import Any

from .columns import ImageFolder, shown


def picture_key(image: Any, folder: ImageFolder) -> str:
    """What tells pictures apart: SHA-256 of the bytes where a row holds them, else the path, however it is written."""
    path, content = (image.get("path"), image.get("bytes")) if isinstance(image, dict) else (image, None)
    content = path if isinstance(path, bytes) else content
    return folder.identity(str(path)) if content is None else hashlib.sha256(content).hexdigest()


def require_one_picture(keys: tuple[str, str], places: tuple[str, str], image_id: str, folder: ImageFolder) -> None:
    """
    Raises `ValueError` that names both rows unless their pictures, as [`picture_key`] has them, are the same or are
    files of the same content.
    """
    if keys[0] == keys[1] or _same_content(*(Path(folder.path, key) for key in keys)):
        return
    raise ValueError(
        f"{places[0]} and {places[1]} are both of image {image_id!r}, but their pictures differ: {shown(keys[0])} and "
        f"{shown(keys[1])}. Give every picture an id of its own, or name another column with image_id_column=."
    )


def _same_content(first: Path, second: Path) -> bool:
    try:
        return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()
    except OSError:  # a picture that is missing is reported where it is read
        return False
