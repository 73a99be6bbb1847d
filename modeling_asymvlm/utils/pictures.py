"""Reading pictures: upright, as RGB with eight bits, whatever depth their file has."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.image_utils import load_image


ORIENTATION = 0x0112  # the tag of EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(source: str | Path | bytes) -> Image.Image:
    """
    Decodes a picture as it is decoded for training: upright, as RGB.

    Args:
        source (`str`, `Path` or `bytes`): a file, or its content.

    Raises:
        OSError: for a file that is not there or no picture. For a broken one, Pillow raises nearly anything.
        ValueError: as [`upright_rgb`].
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        return upright_rgb(opened)


def any_picture(source: str | Image.Image) -> Image.Image:
    """A picture out of what pipelines take: a file, an address, base64, or a picture that is open already."""
    if isinstance(source, Image.Image):
        return upright_rgb(source)
    return open_picture(source) if os.path.isfile(source) else load_image(source)


def upright_rgb(picture: Image.Image) -> Image.Image:
    """
    A picture turned as its camera says, in eight bits. Sixteen bits are scaled by their range, which Pillow would cut
    off at 255; integers of 32 bits up to 255 and floating-point numbers are taken as eight bits, or as parts of one if
    none is larger. An EXIF block that cannot be read turns nothing.

    Raises:
        ValueError: for numbers that are none of these.
    """
    picture.load()
    orientation = _orientation(picture)
    in_eight_bits = _in_eight_bits(picture)
    turned = in_eight_bits.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else in_eight_bits
    upright = turned.convert("RGB")
    upright.info = {}  # the next reader would turn it again
    return upright


def _orientation(picture: Image.Image) -> int | None:
    try:
        return picture.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises nearly anything for a broken block, which says nothing about the pixels
        return None


def _in_eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture if picture.mode == "F" else picture.convert("I"), dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if picture.mode.startswith("I;16") or picture.mode == "I" and 255 < high <= 65535:
        largest = 65535
    else:
        largest = 1 if picture.mode == "F" and high <= 1 else 255
    if not 0 <= low <= high <= largest:  # NaN is none of these either
        raise ValueError(
            f"its values lie between {low:g} and {high:g}: they must be eight or sixteen bits, or parts of one; save "
            "it as such"
        )
    return Image.fromarray(np.rint(values * (255 / largest)).astype(np.uint8))
