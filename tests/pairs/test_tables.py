"""Pairs in tables: grouping, columns, what is refused; growth."""

import json
import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling_asymvlm.pairs.columns import ImageFolder, PairColumns
from modeling_asymvlm.pairs.datasets_library import Opening, open_image_folder, open_table
from modeling_asymvlm.pairs.file_rows import FILE_FORMATS
from modeling_asymvlm.pairs.tables import TablePairs


def read(source, **columns) -> TablePairs:
    opening = Opening(str(source), PairColumns(**columns))
    if source.is_dir():
        return open_image_folder(source, opening)["train"]
    return open_table({"train": [source]}, FILE_FORMATS[source.suffix], opening)["train"]


def images_of(source) -> list:
    return [image for part in range(source.num_parts) for image in source.read(part)]


def captions_of(source) -> list[list[str]]:
    return [list(image.captions) for image in images_of(source)]


def write_file(folder, rows: list[dict], file_format: str):
    file = folder / f"pairs.{file_format}"
    if file_format == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows))
    elif file_format == "json":
        file.write_text(json.dumps(rows))
    else:
        table = datasets.Dataset.from_list(rows)
        table.to_csv(file) if file_format == "csv" else table.to_parquet(file)
    return file


def test_rows_with_one_image_id_share_an_image_and_keep_their_ambiguity(picture_folder, pair_rows):
    rows = [{**row, "image_id": f"id-{row['image']}", "ambiguity": number / 2} for number, row in enumerate(pair_rows)]
    rows = rows[::2] + rows[1::2]
    pairs = read(write_file(picture_folder, rows, "parquet"))
    assert [image.image_id for image in images_of(pairs)] == [f"id-images/{number}.png" for number in range(8)]
    some = images_of(pairs.of_images([5, 2]))
    assert [image.captions for image in some] == [["red 5", "picture 5"], ["red 2", "picture 2"]]
    assert [image.columns for image in some] == [{"ambiguity": [5.0, 5.5]}, {"ambiguity": [2.0, 2.5]}]
    assert [image.open().getpixel((0, 0)) for image in some] == [(30, 0, 0), (12, 0, 0)]


@pytest.mark.parametrize("image_id", ["text", 7, 2**40])
def test_image_ids_are_text_or_whole_numbers(picture_folder, pair_rows, image_id):
    ids = [f"{image_id}-{row // 2}" if isinstance(image_id, str) else image_id + row // 2 for row in range(16)]
    rows = [{**row, "image_id": of_row} for row, of_row in zip(pair_rows, ids, strict=True)]
    pairs = read(write_file(picture_folder, rows, "parquet"))
    assert [image.image_id for image in images_of(pairs)] == [str(of_row) for of_row in ids[::2]]
    rows = [{**row, "image_id": row_number / 2} for row_number, row in enumerate(pair_rows)]
    with pytest.raises(ValueError, match="'image_id' must hold text or whole numbers, but is double"):
        read(write_file(picture_folder, rows, "parquet"))


def test_a_list_of_captions_repeats_the_columns_of_its_row(picture_folder):
    rows = [
        {"image": "images/0.png", "captions": ["a", "b"], "level": 1},
        {"image": "images/1.png", "captions": ["c"], "level": 2},
        {"image": "images/0.png", "captions": ["d"], "level": 3},
    ]
    first, second = images_of(read(write_file(picture_folder, rows, "jsonl")))
    assert (first.captions, first.columns) == (["a", "b", "d"], {"level": [1, 1, 3]})
    assert (second.captions, second.columns) == (["c"], {"level": [2]})


def test_embedded_images_are_told_apart_by_their_bytes(picture_folder, pair_rows):
    rows = [
        {
            "image": {"path": "image.png", "bytes": (picture_folder / row["image"]).read_bytes()},
            "caption": row["caption"],
        }
        for row in pair_rows
    ]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    pairs = TablePairs(datasets.Dataset.from_list(rows, features=features), ImageFolder(picture_folder), "rows")
    assert captions_of(pairs) == [[f"red {number}", f"picture {number}"] for number in range(8)]
    rows[3]["image"] = None
    with pytest.raises(ValueError, match="rows: row 3 has no image: 'image' is empty"):
        TablePairs(datasets.Dataset.from_list(rows, features=features), ImageFolder(picture_folder), "rows")


def test_a_broken_picture_in_a_table_is_named_by_its_row(picture_folder, pair_rows):
    rows = [{"image": b"no picture" if row == 3 else b"", "caption": "a"} for row in range(4)]
    rows[0]["image"] = (picture_folder / "images" / "1.png").read_bytes()
    broken = images_of(read(write_file(picture_folder, rows, "parquet")))[2]
    with pytest.raises(ValueError, match="Image 'pairs.parquet: row 3' cannot be read"):
        broken.open()


def test_images_that_are_addresses_or_no_images_are_refused(picture_folder, pair_rows):
    rows = [{"image": "https://example.org/1.png", "caption": "a"}] * 2
    with pytest.raises(ValueError, match="row 0: the image is an address, .* Download"):
        images_of(read(write_file(picture_folder, rows, "jsonl")))
    with pytest.raises(ValueError, match="'image' must hold images or their paths, but is int64.*image_column="):
        read(write_file(picture_folder, [{"image": 3, "caption": "a"}] * 2, "jsonl"))


def test_paths_of_others_lead_nowhere_else(tmp_path):
    (tmp_path / "inside").mkdir()
    own, others = ImageFolder(tmp_path / "inside"), ImageFolder(tmp_path / "inside", [tmp_path / "inside"])
    for path in (str(tmp_path / "secret.png"), "../secret.png", "a/../../secret.png"):
        assert own.file(path, "here").name == "secret.png"
        with pytest.raises(ValueError, match="here: the image .* does not lie in the folder of images"):
            others.file(path, "here")
    assert others.file("a/b.png", "here") == tmp_path / "inside" / "a" / "b.png"


def test_missing_image_ids_and_captions_that_are_no_text_are_named(picture_folder, pair_rows):
    rows = [{**row, "image_id": None if number == 3 else "x"} for number, row in enumerate(pair_rows)]
    with pytest.raises(ValueError, match="row 3 has no 'image_id'"):
        read(write_file(picture_folder, rows, "jsonl"))
    for file_format, caption in (("json", 7), ("jsonl", {"en": "a", "de": "b"})):
        rows = [{"image": "images/0.png", "caption": caption}] * 2
        with pytest.raises(ValueError, match="row 0 .* has no text: 'caption' is .*caption_column="):
            read(write_file(picture_folder, rows, file_format))


def test_an_image_is_turned_as_its_camera_says(picture_folder):
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(picture_folder / "images" / "0.jpg", exif=exif)
    rows = [{"image": "images/0.jpg", "caption": "a"}, {"image": "images/1.png", "caption": "b"}]
    assert images_of(read(write_file(picture_folder, rows, "jsonl")))[0].open().size == (4, 8)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "{broken"), ("a.csv", ""), ("a.json", "")])
def test_files_that_cannot_be_read_are_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.* cannot be read"):
        read(tmp_path / name)


@pytest.mark.parametrize("caption", ["", "   ", None, [], ["a", ""]])
def test_empty_captions_are_named(picture_folder, caption):
    rows = [{"image": "images/0.png", "caption": ["fine"] if isinstance(caption, list) else "fine"}] * 2
    file = write_file(picture_folder, [*rows, {"image": "images/1.png", "caption": caption}], "jsonl")
    with pytest.raises(ValueError, match="row 2 .*images/1.png.* has an empty caption: 'caption' is"):
        read(file)


def test_missing_columns_are_named_with_what_there_is(picture_folder, pair_rows):
    file = write_file(picture_folder, pair_rows, "jsonl")
    with pytest.raises(ValueError, match="no column 'title'; they have image, caption.*caption_column="):
        read(file, caption="title")
    with pytest.raises(ValueError, match="no column 'photo'; they have image, caption.*image_column="):
        read(file, image="photo")


def test_one_pair_is_too_few(picture_folder, pair_rows):
    with pytest.raises(ValueError, match="hold 1 pairs, but .* at least two"):
        read(write_file(picture_folder, pair_rows[:1], "jsonl"))


def test_a_large_table_is_grouped_without_an_object_a_row(tmp_path):
    number = 200_000
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(number // 5), 5))
    table = pa.table({"image": pa.array(ids).cast(pa.string()), "caption": pa.array(ids).cast(pa.string())})
    pq.write_table(table, tmp_path / "large.parquet")
    tracemalloc.start()
    pairs = read(tmp_path / "large.parquet")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert (pairs.num_images, pairs.num_captions) == (number // 5, number)
    assert held < 60 * number
    _, first = np.unique(ids, return_index=True)
    in_order = [str(image_id) for image_id in ids[np.sort(first)]]
    part = list(pairs.read(pairs.num_parts - 1))
    assert [image.image_id for image in part] == in_order[-len(part) :]
    assert all(image.captions == [image.image_id] * 5 for image in part)
