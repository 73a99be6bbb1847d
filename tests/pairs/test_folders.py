"""A path is a path, never a pattern; the names of folders and files are splits only where the layout says so."""

import json
from pathlib import Path

import datasets
import pytest

from modeling_asymvlm.pairs.captions import read_captions
from modeling_asymvlm.pairs.datasets_library import Opening
from modeling_asymvlm.pairs.layouts import open_pairs
from tests.support.layouts import picture


# Names that mean something in patterns, beside names that these patterns match.
PATTERNS = [("data[12]", "data1"), ("data*", "data2"), ("dat?", "data"), ("{a,b}", "a"), ("[!x]", "y")]


def write(folder: Path, form: str, captions: list[str], name: str = "pairs") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"image": f"{caption}.png", "caption": caption} for caption in captions]
    for number, caption in enumerate(captions):
        (folder / f"{caption}.png").write_bytes(picture(number))
    file = folder / f"{name}.{form}"
    if form == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    elif form == "csv":
        file.write_text("image,caption\n" + "\n".join(f"{row['image']},{row['caption']}" for row in rows))
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def image_folder(folder: Path, paths: list[str]) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(picture(1))
    return folder


def metadata(folder: Path, paths: list[str], form: str = "jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if form == "jsonl":
        text = "\n".join(json.dumps({"file_name": path, "caption": path}) for path in paths)
    else:
        text = "file_name,caption\n" + "\n".join(f"{path},{path}" for path in paths)
    (folder / f"metadata.{form}").write_text(text)
    return folder


def captions_of(path: Path, **options) -> dict[str, list[str]]:
    found = {}
    for split, source in open_pairs(Opening(str(path), **options)).items():
        images = [image for part in range(source.num_parts) for image in source.read(part)]
        assert all(image.open().size == (4, 4) for image in images)
        found[split] = [caption for image in images for caption in image.captions]
    return found


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(("name", "other"), PATTERNS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_file_is_read_by_its_name_and_not_by_a_pattern(name, other, form, streaming, tmp_path):
    write(tmp_path, form, ["wrong", "also wrong"], other)
    file = write(tmp_path, form, ["right", "also right"], name)
    assert captions_of(file, streaming=streaming) == {"train": ["right", "also right"]}
    assert read_captions(str(file)).texts == ["right", "also right"]


@pytest.mark.parametrize(("name", "other"), PATTERNS)
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_folder_is_read_by_its_name_and_not_by_a_pattern(name, other, form, tmp_path):
    write(tmp_path / other, form, ["wrong", "also wrong"], "train")
    assert captions_of(write(tmp_path / name, form, ["a", "b"], "train").parent) == {"train": ["a", "b"]}
    metadata(image_folder(tmp_path / other / "folder", ["0.png", "1.png"]), ["0.png", "1.png"])
    folder = metadata(image_folder(tmp_path / name / "folder", ["2.png", "3.png"]), ["2.png", "3.png"])
    assert captions_of(folder) == {"train": ["2.png", "3.png"]}


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    "paths",
    [
        ["holiday/0.png", "wedding/1.png"],
        ["train_0.png", "test_1.png"],
        ["my-train/0.png", "validation.png"],
        ["a/train/0.png", "a/test/1.png"],
        ["training/0.png", "tests/1.png"],
    ],
)
def test_names_that_only_resemble_splits_are_no_splits(paths, streaming, form, tmp_path):
    folder = metadata(image_folder(tmp_path / "data", paths), paths, form)
    assert captions_of(folder, streaming=streaming) == {"train": paths}


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_that_are_all_named_as_splits_are_splits(streaming, tmp_path):
    paths = ["train/0.png", "train/deep/1.png", "./val/2.png", "val/3.png", "test/4.png", "test//5.png"]
    expected = {"train": paths[:2], "validation": paths[2:4], "test": paths[4:]}
    assert captions_of(metadata(image_folder(tmp_path / "one", paths), paths), streaming=streaming) == expected
    folder = image_folder(tmp_path / "three", ["train/0.png", "train/1.png", "dev/0.png", "dev/2.png"])
    metadata(folder / "train", ["0.png", "1.png"])
    metadata(folder / "dev", ["0.png", "2.png"])
    expected = {"train": ["0.png", "1.png"], "validation": ["0.png", "2.png"]}
    assert captions_of(folder, streaming=streaming) == expected


@pytest.mark.parametrize("in_each", [False, True])
def test_no_folder_beside_splits_is_lost(in_each, tmp_path):
    paths = ["train/0.png", "train/1.png", "holiday/2.png", "holiday/3.png"]
    folder = image_folder(tmp_path / "data", paths)
    for name in ("train", "holiday") if in_each else ():
        metadata(folder / name, [path.partition("/")[2] for path in paths if path.startswith(name)])
    if not in_each:
        metadata(folder, paths)
    with pytest.raises(ValueError, match="named as splits, 'train', and some are not: they are in 'holiday'"):
        captions_of(folder)


def test_metadata_in_folders_that_are_no_splits_are_all_read(tmp_path):
    folder = image_folder(tmp_path / "data", ["paris/0.png", "rome/0.png", "rome/1.png"])
    metadata(folder / "paris", ["0.png"])
    metadata(folder / "rome", ["0.png", "1.png"])
    assert captions_of(folder) == {"train": ["0.png", "0.png", "1.png"]}
    source = open_pairs(Opening(str(folder)))["train"]
    assert [image.image_id for image in source.read(0)] == ["paris/0.png", "rome/0.png", "rome/1.png"]


def test_two_metadata_files_in_one_folder_are_refused(tmp_path):
    folder = metadata(metadata(image_folder(tmp_path, ["0.png", "1.png"]), ["0.png"]), ["1.png"], "csv")
    with pytest.raises(ValueError, match="holds metadata.csv and metadata.jsonl. Keep one"):
        captions_of(folder)
