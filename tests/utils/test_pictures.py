"""Pictures as they are read everywhere: depth, orientation, and metadata that are broken."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from modeling_asymvlm.pairs.sources import CaptionedImage
from modeling_asymvlm.utils.pictures import any_picture, open_picture, upright_rgb


RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)
EIGHT_BITS = np.rint(255 * RAMP).astype(np.uint8)


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()


DEPTHS = {
    "L": (EIGHT_BITS, "PNG"),
    "PNG of 16 bits": (np.rint(65535 * RAMP).astype(np.uint16), "PNG"),
    "TIFF of 16 bits": (np.rint(65535 * RAMP).astype(np.uint16), "TIFF"),
    "big-endian TIFF of 16 bits": (np.rint(65535 * RAMP).astype(">u2"), "TIFF"),
    "integers of 16 bits": (np.rint(65535 * RAMP).astype(np.int32), "TIFF"),
    "integers of 8 bits": (EIGHT_BITS.astype(np.int32), "TIFF"),
    "parts of one": (RAMP.astype(np.float32), "TIFF"),
    "floating-point numbers up to 255": ((255 * RAMP).astype(np.float32), "TIFF"),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_of_a_picture_has_the_same_meaning(depth):
    values, form = DEPTHS[depth]
    read = open_picture(encoded(Image.fromarray(values), form))
    assert read.mode == "RGB" and read.size == (64, 48)
    channels = np.asarray(read).astype(int)
    assert np.abs(channels - EIGHT_BITS[..., None]).max() <= 1


@pytest.mark.parametrize("values", [[-5, 100], [0, 70000]])
def test_integers_of_another_range_are_refused(values):
    picture = Image.fromarray(np.array([values], dtype=np.int32))
    with pytest.raises(ValueError, match="they must be eight or sixteen bits"):
        upright_rgb(picture)


@pytest.mark.parametrize("values", [[-0.5, 1], [0, 256], [0, np.nan], [np.inf, 1]])
def test_floating_point_numbers_of_another_range_are_refused(values):
    content = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    with pytest.raises(ValueError, match="Image 'a' cannot be read: its values lie between"):
        CaptionedImage("a", content, ["x"]).open()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_read_as_pillow_converts_them(mode):
    picture = Image.fromarray(np.stack([EIGHT_BITS, EIGHT_BITS.T.reshape(48, 64), 255 - EIGHT_BITS], 2)).convert(mode)
    assert np.array_equal(np.asarray(upright_rgb(picture)), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_as_pillow_turns_them_and_only_once(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(EIGHT_BITS).convert("RGB"), form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    read = open_picture(content)
    assert np.array_equal(np.asarray(read), np.asarray(expected))
    assert np.array_equal(np.asarray(upright_rgb(read)), np.asarray(read))
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(read)), np.asarray(read))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_leaves_the_picture(form):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    whole, generator = exif.tobytes(), random.Random(0)
    blocks = [b"\0", b"Exif\0\0broken", whole[:9], whole[:20], b"Exif\0\0" + bytes(40)]
    for _ in range(60):
        block = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            block[generator.randrange(6, len(block))] = generator.randrange(256)
        blocks.append(bytes(block))
    for block in blocks:
        content = encoded(Image.fromarray(EIGHT_BITS).convert("RGB"), form, exif=block)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, that the block is corrupt
            assert CaptionedImage("a", content, ["x"]).open().size in ((64, 48), (48, 64)), block


def test_a_broken_picture_is_named_whatever_its_exif_says():
    content = encoded(Image.fromarray(EIGHT_BITS), "PNG")
    with pytest.raises(ValueError, match="Image 'a' cannot be read"):
        CaptionedImage("a", content[: len(content) // 2], ["x"]).open()


def test_training_and_zero_shot_classification_read_the_same_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(DEPTHS["PNG of 16 bits"][0]), "PNG", exif=exif))
    expected = np.asarray(CaptionedImage("a", tmp_path / "a.png", ["x"]).open())
    assert expected.shape == (64, 48, 3) and expected.max() - expected.min() > 250
    for image in (str(tmp_path / "a.png"), Image.open(tmp_path / "a.png"), open_picture(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(any_picture(image)), expected)
