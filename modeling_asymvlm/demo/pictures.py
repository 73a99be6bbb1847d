"""Pictures: those of a gallery by their image ids, and those that visitors upload."""

import base64
import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ..pairs.sources import CaptionedImage, PairSource
from ..utils.pictures import upright_rgb


SIDE = 256  # of a picture on the page, in pixels
SMALL_FILE = 2**14  # bytes, that are kept as they are

MAX_UPLOAD_BYTES = 10 * 2**20
MAX_UPLOAD_PIXELS = 25_000_000
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class Pictures:
    """
    Pictures by image id, decoded when they are shown.

    Args:
        images (`Mapping[str, CaptionedImage]`): may lack some of the gallery.
    """

    def __init__(self, images: Mapping[str, CaptionedImage]):
        self._images = images
        self.data_uri = lru_cache(maxsize=1024)(self._data_uri)

    def __len__(self) -> int:
        return len(self._images)

    def open(self, image_id: str) -> Image.Image:
        """Raises `KeyError` for a picture that is not there, `ValueError` for one that cannot be read."""
        return self._images[image_id].open()

    def _data_uri(self, image_id: str) -> str | None:
        try:
            return data_uri(self.open(image_id))
        except (KeyError, ValueError):  # the page shows the id in its place
            return None


def data_uri(picture: Image.Image) -> str:
    """A picture, made small, as an address that holds its content."""
    media_type, content = _small(picture)
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _small(picture: Image.Image) -> tuple[str, bytes]:
    shrunk = picture.copy()
    shrunk.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    if max(shrunk.size) <= SIDE // 2:  # drawings and icons, which JPEG would blur
        shrunk.save(buffer, "PNG")
        return "image/png", buffer.getvalue()
    shrunk.save(buffer, "JPEG", quality=85)
    return "image/jpeg", buffer.getvalue()


def pictures_of_data(sources: Mapping[str, PairSource], image_ids: Collection[str], split: str) -> Pictures:
    """
    Pictures of a data set: files stay where they are, and pictures that lie in tables or archives are kept small.

    Args:
        sources (`Mapping[str, PairSource]`): of [`~pairs.load_pairs`].
        image_ids (`Collection[str]`): the pictures that are wanted.
        split (`str`): where they stand; other splits are read only for those that are not in it.
    """
    found: dict[str, CaptionedImage] = {}
    wanted = set(image_ids)
    for name in sorted(sources, key=lambda name: name != split):
        for image in _images_of(sources[name]):
            if len(found) == len(wanted):
                return Pictures(found)
            if image.image_id in wanted and image.image_id not in found:
                found[image.image_id] = _kept_small(image)
    return Pictures(found)


def _images_of(source: PairSource) -> Iterator[CaptionedImage]:
    for part in range(source.num_parts):
        yield from source.read(part)


def _kept_small(image: CaptionedImage) -> CaptionedImage:
    if isinstance(image.image, Path) or len(image.image) <= SMALL_FILE:
        return image
    try:
        return replace(image, image=_small(image.open())[1])
    except ValueError:  # a broken picture is shown as its id
        return image


def pictures_in_folder(folder: Path, image_ids: Collection[str]) -> Pictures:
    """
    Pictures whose files are named after their image ids, with or without the suffix, at any depth of a folder. What
    lies outside of it is never opened, whatever an id says or a link leads to.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of pictures at {str(folder)!r}.")
    wanted, root = set(image_ids), folder.resolve()
    found: dict[str, CaptionedImage] = {}
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        for name in (relative.as_posix(), relative.with_suffix("").as_posix(), file.name, file.stem):
            if name in wanted and name not in found and file.is_file() and file.resolve().is_relative_to(root):
                found[name] = CaptionedImage(name, file, ())
    return Pictures(found)


def uploaded_picture(content: bytes) -> Image.Image:
    """
    Decodes what a visitor sent, upright and as RGB.

    Raises:
        ValueError: for too many bytes or pixels, and for what is no picture or a broken one.
    """
    if len(content) > MAX_UPLOAD_BYTES:
        raise ValueError(f"This file has more than {MAX_UPLOAD_BYTES // 2**20} MB: choose a smaller picture.")
    too_large = f"This picture has more than {MAX_UPLOAD_PIXELS // 10**6} million pixels: choose a smaller one."
    try:
        opened = Image.open(io.BytesIO(content), formats=UPLOAD_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(too_large) from error
    except Exception as error:  # for a broken file, Pillow's decoders raise nearly anything
        raise ValueError(f"This is no picture: choose a file in {', '.join(UPLOAD_FORMATS)} format.") from error
    if opened.width * opened.height > MAX_UPLOAD_PIXELS:  # known before a pixel is decoded
        raise ValueError(too_large)
    try:
        return upright_rgb(opened)
    except Exception as error:
        raise ValueError("This picture is broken and cannot be read: choose another.") from error
