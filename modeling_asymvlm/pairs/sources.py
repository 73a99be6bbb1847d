"""What a reader of pairs gives and the builder of a store takes: images with their captions, part by part."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from PIL import Image

from ..utils.pictures import open_picture


# What a caption may carry besides itself: its true ambiguity (log of the number of scenes it fits), and its level in a
# hierarchy of captions, 0 being the most general.
CAPTION_COLUMNS = {"ambiguity": pa.float64(), "level": pa.int64()}


@dataclass(frozen=True)
class CaptionedImage:
    """
    An image with all its captions.

    Args:
        image_id (`str`): identity of the image within its split.
        image (`Path` or `bytes`): a file, or its content.
        captions (`Sequence[str]`): at least one text, none of them empty.
        columns (`Mapping[str, Sequence]`): those of `CAPTION_COLUMNS` that the data have, a value per caption.
        source_name (`str`, *optional*):
            What the data call the image, for messages and reports. By default its path or identity.
    """

    image_id: str
    image: Path | bytes
    captions: Sequence[str]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    source_name: str | None = None

    @property
    def name(self) -> str:
        """What the data call the image, in quotation marks."""
        return repr(self.source_name or (str(self.image) if isinstance(self.image, Path) else self.image_id))

    def open(self) -> Image.Image:
        """Decodes the image as RGB, upright. Raises `ValueError` with its name if that fails."""
        try:
            return open_picture(self.image)
        except Exception as error:  # for a broken file, Pillow's decoders raise nearly anything
            raise ValueError(f"Image {self.name} cannot be read: {error}.") from error


class PairSource(Protocol):
    """
    The images and captions of one split, cut into parts that can be read on their own, in any order and by any
    process. An image stands in one part only, with all its captions; the same part gives the same images in the same
    order every time it is read.
    """

    @property
    def num_images(self) -> int | None:
        """Images in all parts, or `None` where only reading them would tell."""
        ...

    @property
    def num_captions(self) -> int | None:
        """Captions in all parts, or `None` where only reading them would tell."""
        ...

    @property
    def num_parts(self) -> int:
        """How many parts there are, at least one."""
        ...

    def fingerprint(self, part: int) -> str:
        """SHA-256 of what a part holds: captions, identities and the images' bytes, or their files' size and time of
        change. It is found without decoding images."""
        ...

    def read(self, part: int) -> Iterator[CaptionedImage]:
        """The images of a part, one after another. Raises `ValueError` for a row that is no pair."""
        ...


def fingerprint_of(images: Iterable[CaptionedImage]) -> str:
    """
    SHA-256 of images and their captions in their order: identities, captions, columns, and the images' bytes, or their
    files' names, sizes and times of change. A file that is missing has a fingerprint too.
    """
    digest = hashlib.sha256()
    for image in images:
        if isinstance(image.image, bytes):
            content: Any = hashlib.sha256(image.image).hexdigest()
        else:
            try:
                state = image.image.stat()
                content = [image.image.name, state.st_size, state.st_mtime_ns]
            except OSError:
                content = [image.image.name, None]
        columns = {name: list(values) for name, values in image.columns.items()}
        digest.update(json.dumps([image.image_id, list(image.captions), columns, content]).encode())
    return digest.hexdigest()
