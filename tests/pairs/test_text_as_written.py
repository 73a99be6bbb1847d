"""Captions and ids are read as the text that stands in the file, in every layout: no type is guessed."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_asymvlm.pairs.captions import read_captions
from modeling_asymvlm.pairs.datasets_library import Opening
from modeling_asymvlm.pairs.layouts import open_pairs
from tests.support.layouts import picture, write_tar


# What readers of tables take for missing values, numbers, truth values or dates.
WORDS = ["None", "NA", "N/A", "null", "nan", "NaN", "NULL", "#N/A", "true", "FALSE", "{}", "[]", '"quoted"']
WORDS += ["007", "1e5", "1_000", "-0", "0x1F", "inf", "1,000", "1.0", "2020-01-01", "2020-01-01T00:00:00", "12:30"]
WORDS += ["a\u2028b\x0bc\x85d"]


def rows_of(captions: list[str], ids: list[str] | None = None) -> list[dict]:
    rows = [{"image": f"{number}.png", "caption": caption} for number, caption in enumerate(captions)]
    return rows if ids is None else [{**row, "image_id": of_row} for row, of_row in zip(rows, ids, strict=True)]


def separated(file: Path, rows: list[dict], delimiter: str) -> Path:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


def lines(file: Path, rows: list) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def parquet(file: Path, rows: list[dict]) -> Path:
    datasets.Dataset.from_list(rows).to_parquet(file)
    return file


def image_folder(folder: Path, rows: list[dict], name: str) -> Path:
    renamed = [{"file_name": row.pop("image"), **row} for row in rows]
    (separated(folder / name, renamed, ",") if name.endswith("csv") else lines(folder / name, renamed))
    return folder


def shard(file: Path, rows: list[dict], described_by: str) -> Path:
    members = {}
    for row in rows:
        key = row.get("image_id", Path(row["image"]).stem).replace("/", "-").replace(".", "-")
        members[f"{key}.png"] = picture(1)
        text = row["caption"] if described_by == "txt" else json.dumps({"caption": row["caption"]})
        members[f"{key}.{described_by}"] = text.encode()
    return write_tar(file, members)


def coco(file: Path, rows: list[dict]) -> Path:
    images = [{"id": row.get("image_id", row["image"]), "file_name": row["image"]} for row in rows]
    annotations = [
        {"id": number, "image_id": image["id"], "caption": row["caption"]}
        for number, (image, row) in enumerate(zip(images, rows, strict=True))
    ]
    return lines(file, [{"info": {}, "images": images, "annotations": annotations}])


def karpathy(file: Path, rows: list[dict]) -> Path:
    images = [{"filename": row["image"], "split": "train", "sentences": [{"raw": row["caption"]}]} for row in rows]
    return lines(file, [{"images": images, "dataset": "x"}])


def bars(file: Path, rows: list[dict]) -> Path:
    text = [f"{row['image']}| 0| {row['caption']}" for row in rows]
    file.write_text("\n".join(["image_name| comment_number| comment", *text]), encoding="utf-8", newline="")
    return file


def commas(file: Path, rows: list[dict]) -> Path:
    return separated(file, rows, ",")


def tokens(file: Path, rows: list[dict]) -> Path:
    file.write_text("\n".join(f"{row['image']}#0\t{row['caption']}" for row in rows), encoding="utf-8", newline="")
    return file


def annotations_30k(file: Path, rows: list[dict]) -> Path:
    rows = [{"raw": json.dumps([row["caption"]]), "split": "train", "filename": row["image"]} for row in rows]
    return separated(file, rows, ",")


TABLES = {
    "csv": lambda folder, rows: separated(folder / "pairs.csv", rows, ","),
    "CSV": lambda folder, rows: separated(folder / "PAIRS.CSV", rows, ","),
    "tsv": lambda folder, rows: separated(folder / "pairs.tsv", rows, "\t"),
    "json": lambda folder, rows: lines(folder / "pairs.json", [rows]),
    "jsonl": lambda folder, rows: lines(folder / "pairs.jsonl", rows),
    "JSONL": lambda folder, rows: lines(folder / "PAIRS.JSONL", rows),
    "parquet": lambda folder, rows: parquet(folder / "pairs.parquet", rows),
}
WITH_IDS = TABLES | {
    "metadata.jsonl": lambda folder, rows: image_folder(folder, rows, "metadata.jsonl"),
    "metadata.csv": lambda folder, rows: image_folder(folder, rows, "metadata.csv"),
    "coco": lambda folder, rows: coco(folder / "captions_train2017.json", rows),
}
LAYOUTS = WITH_IDS | {
    "webdataset txt": lambda folder, rows: shard(folder / "0.tar", rows, "txt"),
    "webdataset json": lambda folder, rows: shard(folder / "0.tar", rows, "json"),
    "karpathy": lambda folder, rows: karpathy(folder / "dataset_coco.json", rows),
    "flickr bars": lambda folder, rows: bars(folder / "results.csv", rows),
    "flickr commas": lambda folder, rows: commas(folder / "captions.txt", rows),
    "flickr tokens": lambda folder, rows: tokens(folder / "Flickr8k.token.txt", rows),
    "flickr annotations": lambda folder, rows: annotations_30k(folder / "flickr_annotations_30k.csv", rows),
}
STREAMED = [name for name in LAYOUTS if name not in ("coco", "karpathy") and "flickr" not in name]


def write(name: str, folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    for row in rows:
        (folder / row["image"]).write_bytes(picture(1))
    return LAYOUTS[name](folder, [dict(row) for row in rows])


def read(path: Path, **options) -> dict[str, str]:
    """The caption of each image by its id."""
    sources = open_pairs(Opening(str(path), **options))
    images = [image for source in sources.values() for part in range(source.num_parts) for image in source.read(part)]
    return {image.image_id: image.captions[0] for image in images}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_captions_are_the_text_in_the_file(name, streaming, tmp_path):
    if streaming and name not in STREAMED:
        pytest.skip("a layout that is not streamed")
    path = write(name, tmp_path / "data", rows_of(WORDS))
    assert sorted(read(path, streaming=streaming).values()) == sorted(WORDS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", WITH_IDS)
def test_ids_are_the_text_in_the_file(name, streaming, tmp_path):
    if streaming and name not in STREAMED:
        pytest.skip("a layout that is not streamed")
    ids = [*WORDS, "1", "01", "1.00"]
    path = write(name, tmp_path / "data", rows_of([f"caption {of_row}" for of_row in ids], ids))
    assert read(path, streaming=streaming) == {of_row: f"caption {of_row}" for of_row in ids}


@pytest.mark.parametrize("name", LAYOUTS)
def test_triage_reads_the_same_text(name, tmp_path):
    rows = rows_of(WORDS, [f"id {word}" for word in WORDS] if name in WITH_IDS else None)
    found = read_captions(str(write(name, tmp_path / "data", rows)))
    assert sorted(found.texts) == sorted(WORDS)
    if name in TABLES:
        assert (found.rows, found.image_ids) == (list(range(len(WORDS))), [row["image_id"] for row in rows])


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    str.strip
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(captions=st.lists(TEXT | st.sampled_from(WORDS), min_size=2, max_size=5), name=st.sampled_from(list(TABLES)))
def test_any_text_survives_a_table(captions, name):
    with tempfile.TemporaryDirectory() as folder:
        file = TABLES[name](Path(folder), rows_of(captions))
        assert read_captions(str(file)).texts == captions
        source = open_pairs(Opening(str(file), streaming=True))["train"]
        assert [image.captions for part in range(source.num_parts) for image in source.read(part)] == [
            [caption] for caption in captions
        ]


NO_TEXTS = [7, 1.5, True, False, {"en": "a"}, [["a"]], [7], {}]


@pytest.mark.parametrize("value", NO_TEXTS, ids=str)
@pytest.mark.parametrize("name", ["json", "jsonl", "metadata.jsonl", "coco", "karpathy", "webdataset json"])
def test_captions_that_are_no_text_are_refused_with_their_place(name, value, tmp_path):
    rows = rows_of(["fine", "fine", value, "fine"])
    path = write(name, tmp_path / "data", rows)
    place = {"coco": "annotation 2", "karpathy": "image '2.png'", "webdataset json": "sample '2'"}.get(name, "row 2")
    with pytest.raises(ValueError, match=f"{place}.* has no text"):
        read(path)
    if name in TABLES:
        with pytest.raises(ValueError, match=f"{place}.* has no text"):
            read(path, streaming=True)
        with pytest.raises(ValueError, match=f"{place} has no text"):
            read_captions(str(path))


@pytest.mark.parametrize("value", [1.5, True, ["a"], {"id": 1}], ids=str)
@pytest.mark.parametrize("name", ["json", "jsonl", "metadata.jsonl", "coco"])
def test_ids_that_are_no_text_and_no_whole_number_are_refused(name, value, tmp_path):
    path = write(name, tmp_path / "data", rows_of(["a", "b", "c"], ["x", 5, value]))
    with pytest.raises(
        ValueError, match="'id' of an image must be text" if name == "coco" else "row 2: 'image_id' must"
    ):
        read(path)


@pytest.mark.parametrize("value", ["one", "1.5", "nan", "", "inf"])
@pytest.mark.parametrize("name", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_levels_that_are_no_whole_numbers_are_named_with_their_row(name, value, streaming, tmp_path):
    rows = [{**row, "level": level} for row, level in zip(rows_of(["a", "b", "c"]), ["0", "1", value], strict=True)]
    path = write(name, tmp_path / "data", rows)
    with pytest.raises(ValueError, match=f"pairs.{name}.*row 2.*'level' must be a whole number, but is '{value}'"):
        read(path, streaming=streaming)


@pytest.mark.parametrize("levels", [[0, None, 2], [0, True, 2], [0, {"of": 1}, 2], [0, 1.5, 2]], ids=str)
def test_levels_of_mixed_types_are_named_with_their_row(levels, tmp_path):
    rows = [{**row, "level": level} for row, level in zip(rows_of(["a", "b", "c"]), levels, strict=True)]
    with pytest.raises(ValueError, match="pairs.jsonl: row 1.*'level' must be a whole number"):
        read(write("jsonl", tmp_path / "data", rows))


def test_levels_are_numbers_however_they_are_written(tmp_path):
    rows = [{**row, "level": level} for row, level in zip(rows_of(["a", "b", "c"]), ["0", 1, 2.0], strict=True)]
    for name in ("csv", "jsonl"):
        sources = open_pairs(Opening(str(write(name, tmp_path / name, rows)), streaming=True))
        assert [image.columns["level"] for image in sources["train"].read(0)] == [[0], [1], [2]]


def test_a_column_that_later_rows_alone_have_is_not_lost(tmp_path):
    rows = rows_of(["a", "b", "c"])
    for name, value in (("image_id", "x"), ("level", 1)):
        path = write("jsonl", tmp_path / name, [*rows[:2], {**rows[2], name: value}])
        with pytest.raises(ValueError, match=f"row 2 has '{name}', but the first row has none"):
            read(path)


def test_a_table_is_read_again_when_its_file_has_changed_and_only_then(tmp_path):
    file = write("csv", tmp_path / "data", rows_of(["a", "b", "c"]))
    state = file.stat()
    assert sorted(read(file).values()) == ["a", "b", "c"]
    copies = {copy: copy.stat().st_mtime_ns for copy in datasets.config.HF_DATASETS_CACHE.rglob("*.arrow")}
    assert sorted(read(file).values()) == ["a", "b", "c"] and copies
    assert copies == {copy: copy.stat().st_mtime_ns for copy in datasets.config.HF_DATASETS_CACHE.rglob("*.arrow")}
    file.write_bytes(file.read_bytes().replace(b"c\r\n", b"d\r\n"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert sorted(read(file).values()) == ["a", "b", "d"]


def test_json_may_be_lines_a_list_or_objects_one_after_another(tmp_path):
    rows = rows_of(["a", "b", "c"])
    forms = {
        "lines": "\n".join(map(json.dumps, rows)),
        "blank lines": "\n\n".join(map(json.dumps, rows)) + "\n\n",
        "list": json.dumps(rows),
        "indented list": "\n\n" + json.dumps(rows, indent=2) + "\n",
        "indented objects": "\n".join(json.dumps(row, indent=2) for row in rows),
        "carriage returns": "\r\n".join(map(json.dumps, rows)),
    }
    for form, text in forms.items():
        (tmp_path / "pairs.json").write_bytes(io.BytesIO(text.encode()).read())
        assert read_captions(str(tmp_path / "pairs.json")).texts == ["a", "b", "c"], form
