"""Captions alone: what is read of pairs, and what is asked of them."""

import json

import pytest

from modeling_asymvlm.pairs.captions import read_captions
from tests.support import layouts


def test_captions_of_pairs_need_no_other_splits_and_keep_their_order(tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(layouts.picture(number))
    rows = [{"image": f"{number}.png", "image_id": number, "caption": f"red {number}"} for number in range(2)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_captions(str(folder))
    assert (found.texts, found.rows, found.image_ids) == (["red 0", "red 1"], [0, 1], ["0", "1"])


def test_another_column_and_folder_of_images_are_named(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(layouts.picture(number))
    (tmp_path / "data").mkdir()
    rows = [{"photo": f"{number}.png", "caption": f"red {number}"} for number in range(2)]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="no column 'image'.*image_column="):
        read_captions(str(tmp_path / "data"))
    found = read_captions(str(tmp_path / "data"), image_column="photo", image_folder=str(tmp_path / "pictures"))
    assert found.texts == ["red 0", "red 1"] and found.image_ids == ["0.png", "1.png"]
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        read_captions(str(tmp_path / "data"), image_column="photo", image_folder=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("option", ["image_column", "image_folder"])
def test_a_table_is_read_without_its_images(tmp_path, option):
    (tmp_path / "captions.csv").write_text("caption\nred\n")
    with pytest.raises(ValueError, match=f"read without its images: leave {option}= off"):
        read_captions(str(tmp_path / "captions.csv"), **{option: "x"})


def test_a_missing_column_is_answered_with_the_argument_that_names_another(tmp_path):
    (tmp_path / "captions.csv").write_text("title\nred\n")
    with pytest.raises(ValueError, match="no column 'caption'; it has title. Name another with caption_column="):
        read_captions(str(tmp_path / "captions.csv"))
