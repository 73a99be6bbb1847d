"""What is one image: a path however it is written; what claims to be one must have one picture."""

import json
import os
import tempfile
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_asymvlm.pairs.columns import ImageFolder
from modeling_asymvlm.pairs.datasets_library import Opening
from modeling_asymvlm.pairs.layouts import load_pairs, open_pairs
from tests.support import layouts
from tests.support.layouts import picture


FOLDERS = ("pictures", "pictures/inner", "other")


def spellings(folder: Path, path: str) -> list[str]:
    """Ways to write a path in a folder that has the folders `FOLDERS` and a link to itself beside it."""
    parent, _, name = path.rpartition("/")
    return [
        path,
        f"./{path}",
        f"{parent}//{name}",
        f"{parent}/./{name}",
        f"pictures/../{path}",
        f"pictures/inner/../../{path}",
        f"../{folder.name}/{path}",
        str(folder / path),
        f"{folder}//{path}",
        f"{folder}/other/../{path}",
        str(folder.parent / "link" / path),
    ]


def make_folders(root: Path) -> Path:
    folder = root / "data"
    for inner in FOLDERS:
        (folder / inner).mkdir(parents=True)
        for number in range(3):
            (folder / inner / f"{number}.png").write_bytes(picture(number))
    (root / "link").symlink_to(folder)
    return folder


def write(folder: Path, rows: list[dict], form: str) -> Path:
    file = folder / f"pairs.{form}"
    if form == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def images_of(path: Path, **options) -> list:
    source = open_pairs(Opening(str(path), **options))["train"]
    return [image for part in range(source.num_parts) for image in source.read(part)]


def test_every_spelling_of_a_path_is_one_image_however_the_folder_is_named(tmp_path):
    make_folders(tmp_path)
    for named in (tmp_path / "data", tmp_path / "link", Path(os.path.relpath(tmp_path / "data"))):
        folder = ImageFolder(named)
        for path in ("pictures/0.png", "pictures/inner/1.png", "other/2.png"):
            assert {folder.identity(spelling) for spelling in spellings(tmp_path / "data", path)} == {path}
        assert folder.identity("/elsewhere/./0.png") == "/elsewhere/0.png"
        assert folder.identity("https://example.org//a/../b.png") == "https://example.org//a/../b.png"


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sampled_from(["", ".", "..", "pictures", "inner", "other", "link"]), max_size=6))
def test_two_paths_have_one_identity_only_if_they_lead_to_one_file(steps):
    with tempfile.TemporaryDirectory() as root:
        folder = ImageFolder(make_folders(Path(root)))
        (folder.path / "link").symlink_to(folder.path / "pictures" / "inner")
        path = "/".join([*steps, "0.png"]).lstrip("/")
        if os.path.exists(folder.path / path):
            found = folder.identity(path)
            assert os.path.samefile(folder.path / path, folder.path / found)
            assert folder.identity(found) == found


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_of_one_picture_are_never_in_two_splits(form, streaming, tmp_path):
    folder = make_folders(tmp_path)
    paths = [f"{inner}/{number}.png" for inner in FOLDERS for number in range(3)]
    rows = [{"image": spelling, "caption": path} for path in paths for spelling in spellings(folder, path)]
    sources = load_pairs(str(write(folder, rows, form)), streaming=streaming, held_out_fraction=0.25)
    images = [image for of in sources.values() for part in range(of.num_parts) for image in of.read(part)]
    captions = [set(image.captions) for image in images]
    assert all(len(of_image) == 1 for of_image in captions) and len(captions) == len(paths)
    assert set().union(*captions) == set(paths)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", ["paths", "bytes"])
def test_rows_of_one_id_must_have_one_picture(kind, form, streaming, tmp_path):
    folder = make_folders(tmp_path)
    if kind == "bytes" and form == "jsonl":
        pytest.skip("JSON holds no bytes")
    images = ["other/0.png", "./other/0.png", "pictures/0.png"] if kind == "paths" else [picture(0)] * 3
    rows = [{"image": image, "caption": str(row), "image_id": "x"} for row, image in enumerate(images)]
    rows.append({"image": "other/1.png" if kind == "paths" else picture(1), "caption": "3", "image_id": "y"})
    first, second = images_of(write(folder, rows, form), streaming=streaming)
    assert (first.captions, second.captions) == (["0", "1", "2"], ["3"])  # pictures/0.png has the same content
    rows[2]["image"] = rows[3]["image"]
    message = "row 0 and row 2 are both of image 'x', but their pictures differ: .*image_id_column="
    with pytest.raises(ValueError, match=message):
        images_of(write(folder, rows, form), streaming=streaming)


@pytest.mark.parametrize("spelling", ["0.png", "./0.png", "a/../0.png"])
def test_two_images_of_an_annotation_file_are_not_one_picture(spelling, tmp_path):
    file = layouts.coco_file(tmp_path / "data")
    (tmp_path / "data" / "train2017" / "a").mkdir()
    content = json.loads(file.read_text())
    content["images"][5]["file_name"] = spelling
    file.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="images '100' and '105' are one picture, .*Join their captions, or remove one"
    ):
        open_pairs(Opening(str(file)))


def test_an_id_that_is_a_number_and_one_that_is_its_text_are_one(tmp_path):
    rows = [{"image": f"{number}.png", "caption": "a", "image_id": of} for number, of in enumerate([7, "7"])]
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    with pytest.raises(ValueError, match="row 0 and row 1 are both of image '7', but their pictures differ"):
        images_of(write(tmp_path, rows, "jsonl"))
