"""Encodings, line ends and damage of text files: read, or refused with the file, the place and the cause."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_asymvlm.pairs.captions import read_captions
from modeling_asymvlm.pairs.datasets_library import Opening
from modeling_asymvlm.pairs.layouts import open_pairs
from tests.pairs.test_text_as_written import LAYOUTS, TABLES, rows_of, write
from tests.support.layouts import picture, write_tar


OF_TEXT = [name for name in LAYOUTS if name != "parquet" and "webdataset" not in name]
CAPTIONS = ["caf\u00e9", "b", "c"]


def captions_of(path: Path, **options) -> list[str]:
    sources = open_pairs(Opening(str(path), **options))
    images = [image for of in sources.values() for part in range(of.num_parts) for image in of.read(part)]
    return [caption for image in images for caption in image.captions]


def text_file(path: Path) -> Path:
    return path if path.is_file() else next(path.glob("metadata.*"))


def rewrite(path: Path, change) -> Path:
    file = text_file(path)
    file.write_bytes(change(file.read_text(encoding="utf-8")))
    return file


def unescaped(name: str, folder: Path) -> Path:
    """A layout with an accent in its first caption, as UTF-8 and not as an escape of JSON."""
    path = write(name, folder, rows_of(CAPTIONS))
    rewrite(path, lambda text: text.replace("\\\\u00e9", "\u00e9").replace("\\u00e9", "\u00e9").encode())
    assert "caf\u00e9" in text_file(path).read_text(encoding="utf-8")
    return path


@pytest.mark.parametrize("name", OF_TEXT)
def test_a_byte_order_mark_is_no_part_of_the_text(name, tmp_path):
    path = unescaped(name, tmp_path / "data")
    rewrite(path, lambda text: b"\xef\xbb\xbf" + text.encode())
    assert captions_of(path) == CAPTIONS
    assert sorted(read_captions(str(path)).texts) == sorted(CAPTIONS)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", OF_TEXT)
def test_other_encodings_are_named_with_the_file(name, encoding, tmp_path):
    path = unescaped(name, tmp_path / "data")
    file = rewrite(path, lambda text: text.encode(encoding))
    message = r"\.(?i:csv|tsv|jsonl?|txt)"
    if encoding == "latin-1":
        message += r" cannot be read: line \d is not UTF-8 \(byte 0xe9\).* Save it as UTF-8"
    with pytest.raises(ValueError, match=message):
        captions_of(path)
    if name in TABLES:
        message = r"cannot be read: line 1 (is not UTF-8|holds NUL)" if encoding != "latin-1" else message
        for read in (lambda: captions_of(path, streaming=True), lambda: read_captions(str(file))):
            with pytest.raises(ValueError, match=message):
                read()


@pytest.mark.parametrize("delimiter", [",", "\t"], ids=["csv", "tsv"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1.png~a~b", r"row 1 \(line 3\) has 3 fields, but the header names 2"),
        ("1.png", r"row 1 \(line 3\) has 1 fields, but the header names 2"),
        ('1.png~"never closed', "line 4: unexpected end of data"),
        ('1.png~"closed" too early', "line 3: .* expected after"),
        (f"1.png~{'x' * 200_000}", "line 3: field larger than field limit"),
    ],
)
def test_ragged_rows_are_named_with_their_line(row, message, delimiter, tmp_path):
    file = tmp_path / ("pairs.csv" if delimiter == "," else "pairs.tsv")
    file.write_text(f"image~caption\n0.png~a\n{row}\n2.png~c\n".replace("~", delimiter))
    for read in (captions_of, lambda path: captions_of(path, streaming=True), lambda path: read_captions(str(path))):
        with pytest.raises(ValueError, match=f"{file.name} cannot be read: {message}"):
            read(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "0.png", "caption": "a"}\n{"image": ', "line 2 is not JSON"),
        (
            '{"image": "0.png", "caption": "a"}\n[1]',
            "row 1 must be an object with a value for each .*, but is list",
        ),
        ('[{"image": "0.png", "caption": "a"},\n{"image": "0.png" "caption"', "line 2 is not JSON"),
        ('[{"image": "0.png", "caption": "a"}', "line 1 is not JSON"),
        ('[{"image": "0.png", "caption": "a"}] x', "the list does not end where the file does"),
        ('[{"image": "0.png", "caption": "a"},]', "a value must follow the comma"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"image": "0.png", "caption": "a"}\n{"a":' + "[" * 100_000, "line 2 is nested too deeply"),
        ("[1" + "0" * 5000 + "]", "line 1 is not JSON"),
        ("", "it is empty"),
        (" \n \n", "it is empty"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_what_is_no_json_is_named_with_its_line(text, message, suffix, tmp_path):
    file = tmp_path / f"pairs.{suffix}"
    file.write_text(text)
    for read in (captions_of, lambda path: captions_of(path, streaming=True), lambda path: read_captions(str(path))):
        with pytest.raises(ValueError, match=f"{file.name} cannot be read: .*{message}"):
            read(file)


@pytest.mark.parametrize(
    "name", ["jsonl", "metadata.jsonl", "coco", "karpathy", "webdataset json", "flickr annotations"]
)
def test_a_lone_surrogate_is_refused_with_its_place(name, tmp_path):
    path = write(name, tmp_path / "data", rows_of(["fine", "half \ud83d", "fine"]))
    with pytest.raises(
        ValueError, match=r"(row 1|annotation 1|image '1.png'|sample '1'|line 3).* has a lone surrogate"
    ):
        captions_of(path)


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85", "\r"])
def test_a_caption_of_img2dataset_with_a_line_break_stays_one(separator, tmp_path):
    caption = f"a red{separator}{separator}circle"
    members = {"0.png": picture(0), "0.txt": caption.encode(), "0.json": json.dumps({"caption": caption}).encode()}
    assert captions_of(write_tar(tmp_path / "0.tar", members)) == [caption]
    del members["0.json"]
    several = ["a red", "circle"] if separator in ("\n", "\r\n") else [caption]
    assert captions_of(write_tar(tmp_path / "1.tar", members)) == several


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_separators_of_unicode_stand_within_a_caption(name, separator, tmp_path):
    captions = [f"a red{separator}circle", "b"]
    assert captions_of(write(name, tmp_path / "data", rows_of(captions))) == captions


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
    (tmp_path / "pairs.csv").write_text("image,caption,caption\n0.png,a,b\n")
    with pytest.raises(ValueError, match="pairs.csv cannot be read: its header names 'caption' more than once"):
        captions_of(tmp_path / "pairs.csv")


LONG = "data:image/png;base64," + "iVBORw0KGgo" * 2000


@pytest.mark.parametrize("image", [LONG, LONG.partition(",")[2], "/" + LONG.partition(",")[2]])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_picture_in_base64_is_named_without_being_repeated(image, streaming, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"image": image, "caption": caption}) for caption in "ab"))
    with pytest.raises(ValueError, match=r"row 0: .*image.* base64.*bytes") as refused:
        captions_of(file, streaming=streaming)
    assert len(str(refused.value)) < 600


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from([*OF_TEXT, "webdataset txt", "webdataset json"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3),
    keep=st.floats(0.5, 1),
)
def test_a_damaged_file_is_read_or_refused_with_its_name(name, places, keep, tmp_path_factory):
    path = write(name, tmp_path_factory.mktemp("data"), rows_of(["caption a", "caption b", "caption c"]))
    file = text_file(path)
    content = bytearray(file.read_bytes())
    for place, byte in places:
        content[int(place * (len(content) - 1))] = byte
    file.write_bytes(content[: round(keep * len(content))] if keep < 0.9 else content)
    try:
        captions_of(path)
    except ValueError as error:
        assert path.name in str(error) or str(path.parent) in str(error)
