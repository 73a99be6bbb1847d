"""Pairs from files, folders and data sets; held-out splits; what is refused."""

import json

import datasets
import pytest
from PIL import Image

from modeling_asymvlm.pairs import (
    load_splits,
    read_pairs,
    with_held_out_splits,
)


def read(source, **columns):
    loaded, base = load_splits(str(source))
    return read_pairs(loaded["train"], base, **columns)


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


@pytest.mark.parametrize("file_format", ["json", "jsonl", "csv", "parquet"])
def test_files_of_every_format_give_the_pairs_of_the_image_folder(picture_folder, pair_rows, file_format):
    expected = read(picture_folder)
    assert len(expected.images) == 8
    assert expected.captions[:3] == ["red 0", "picture 0", "red 1"]
    assert expected.text_image_index == [row // 2 for row in range(16)]
    pairs = read(write_file(picture_folder, pair_rows, file_format))
    assert (pairs.captions, pairs.text_image_index) == (expected.captions, expected.text_image_index)
    for row in range(8):
        assert pairs.open_image(row).getpixel((0, 0)) == (row * 6, 0, 0)
        assert expected.open_image(row).getpixel((0, 0)) == (row * 6, 0, 0)


def test_rows_with_one_image_id_share_an_image_and_keep_their_ambiguity(picture_folder, pair_rows):
    rows = [{**row, "image_id": f"id-{row['image']}", "ambiguity": number / 2} for number, row in enumerate(pair_rows)]
    pairs = read(write_file(picture_folder, rows, "parquet"))
    assert pairs.image_ids == [f"id-images/{number}.png" for number in range(8)]
    assert pairs.columns == {"ambiguity": [number / 2 for number in range(16)]}
    some = pairs.of_images([5, 2])
    assert some.captions == ["red 2", "picture 2", "red 5", "picture 5"]
    assert some.text_image_index == [1, 1, 0, 0]
    assert some.columns == {"ambiguity": [2.0, 2.5, 5.0, 5.5]}


def test_a_folder_of_files_named_after_splits_and_a_saved_data_set(picture_folder, pair_rows, tmp_path):
    splits = tmp_path / "splits"
    splits.mkdir()
    rows = [{"image": str(picture_folder / row["image"]), "caption": row["caption"]} for row in pair_rows]
    for name, part in (("train", rows[:8]), ("validation", rows[8:12]), ("test", rows[12:])):
        (splits / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in part))
    loaded, base = load_splits(str(splits))
    assert {name: len(read_pairs(split, base).images) for name, split in loaded.items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }


def test_missing_splits_are_held_out_by_image(picture_folder, pair_rows):
    pairs = {"train": read(picture_folder)}
    splits = with_held_out_splits(pairs, 0.25, seed=3)
    assert {name: len(split.images) for name, split in splits.items()} == {"train": 4, "validation": 2, "test": 2}
    ids = [set(split.image_ids) for split in splits.values()]
    assert len(set.union(*ids)) == 8
    for split in splits.values():
        for text, image in zip(split.captions, split.text_image_index, strict=True):
            assert split.image_ids[image].endswith(f"{text.split()[1]}.png")
    again = with_held_out_splits(pairs, 0.25, seed=3)
    assert again["test"].image_ids == splits["test"].image_ids
    assert with_held_out_splits(splits, 0.25, seed=3)["test"] is splits["test"]
    with pytest.raises(ValueError, match="4 training images are too few to hold out validation and test splits of 2"):
        with_held_out_splits({"train": pairs["train"].of_images([0, 1, 2, 3])}, 0.5, seed=3)


def test_embedded_images_are_told_apart_by_their_bytes(picture_folder, pair_rows):
    rows = [
        {
            "image": {"path": "image.png", "bytes": (picture_folder / row["image"]).read_bytes()},
            "caption": row["caption"],
        }
        for row in pair_rows
    ]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    pairs = read_pairs(datasets.Dataset.from_list(rows, features=features), picture_folder)
    assert len(pairs.images) == 8 and pairs.text_image_index == [row // 2 for row in range(16)]


def test_missing_image_ids_and_captions_that_are_no_text_are_named(picture_folder, pair_rows):
    rows = [{**row, "image_id": None if number == 3 else "x"} for number, row in enumerate(pair_rows)]
    with pytest.raises(ValueError, match="Row 3 has no 'image_id'"):
        read(write_file(picture_folder, rows, "jsonl"))
    for file_format, caption in (("json", 7), ("jsonl", {"en": "a", "de": "b"})):
        rows = [{"image": "images/0.png", "caption": caption}] * 2
        with pytest.raises(ValueError, match="Row 0 .* has no text: 'caption' is .*--caption_column"):
            read(write_file(picture_folder, rows, file_format))


def test_an_image_is_turned_as_its_camera_says(picture_folder):
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(picture_folder / "images" / "0.jpg", exif=exif)
    rows = [{"image": "images/0.jpg", "caption": "a"}, {"image": "images/1.png", "caption": "b"}]
    assert read(write_file(picture_folder, rows, "jsonl")).open_image(0).size == (4, 8)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "{broken"), ("a.csv", ""), ("a.json", "")])
def test_files_that_cannot_be_read_are_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.* cannot be read"):
        load_splits(str(tmp_path / name))


@pytest.mark.parametrize("caption", ["", "   ", None, [], ["a", ""]])
def test_empty_captions_are_named(picture_folder, caption):
    rows = [{"image": "images/0.png", "caption": ["fine"] if isinstance(caption, list) else "fine"}] * 2
    file = write_file(picture_folder, [*rows, {"image": "images/1.png", "caption": caption}], "jsonl")
    with pytest.raises(ValueError, match="Row 2 .*images/1.png.* has an empty caption: 'caption' is"):
        read(file)


def test_missing_columns_are_named_with_what_there_is(picture_folder, pair_rows):
    file = write_file(picture_folder, pair_rows, "jsonl")
    with pytest.raises(ValueError, match="no column 'title'; they have image, caption.*--caption_column"):
        read(file, caption_column="title")
    with pytest.raises(ValueError, match="no column 'photo'; they have image, caption.*--image_column"):
        read(file, image_column="photo")


def test_one_pair_is_too_few(picture_folder, pair_rows):
    with pytest.raises(ValueError, match="hold 1 pairs, but .* at least two"):
        read(write_file(picture_folder, pair_rows[:1], "jsonl"))


def test_sources_that_are_no_data_are_named(tmp_path):
    (tmp_path / "pairs.txt").write_text("x")
    with pytest.raises(ValueError, match="must end in one of .json, .jsonl, .csv, .parquet"):
        load_splits(str(tmp_path / "pairs.txt"))
    with pytest.raises(ValueError, match="neither metadata.jsonl nor a train.json"):
        load_splits(str(tmp_path))
