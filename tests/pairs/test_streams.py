"""Streamed data sets: grouping of rows that follow one another, fingerprints, the Hub's cache."""

import io
import json
import os
import shutil

import datasets
import fsspec
import pytest

from modeling_asymvlm.pairs import streams
from modeling_asymvlm.pairs.datasets_library import Opening, open_table
from modeling_asymvlm.pairs.layouts import load_pairs
from tests.support import layouts
from tests.support.layouts import CAPTIONS, embedded_rows, picture


def stream(file, name: str = "pairs.jsonl", **options):
    return open_table({"train": [file / name]}, "json", Opening(name, streaming=True, **options))["train"]


def write_rows(folder, rows: list[dict]):
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def images_of(source) -> list:
    return [image for part in range(source.num_parts) for image in source.read(part)]


def test_rows_that_follow_one_another_share_an_image(tmp_path):
    rows = [
        {"image": "a.png", "caption": "a", "image_id": 3, "level": 0},
        {"image": "a.png", "caption": "b", "image_id": 3, "level": 1},
        {"image": "b.png", "caption": "c", "image_id": 4, "level": 2},
    ]
    first, second = images_of(stream(write_rows(tmp_path, rows)))
    assert (first.image_id, first.captions, first.columns) == ("3", ["a", "b"], {"level": [0, 1]})
    assert (second.image_id, second.captions, second.image) == ("4", ["c"], tmp_path / "b.png")


@pytest.mark.parametrize("column", ["image", "image_id"])
def test_an_image_that_comes_again_later_is_refused(column, tmp_path):
    rows = [{"image": "a.png", "caption": "a"}, {"image": "b.png", "caption": "b"}, {"image": "a.png", "caption": "c"}]
    if column == "image_id":
        rows = [{**row, "image_id": row["image"]} for row in rows]
    with pytest.raises(ValueError, match="pairs.jsonl: row 2: image 'a.png' came before.*without streaming="):
        images_of(stream(write_rows(tmp_path, rows)))


def test_the_same_bytes_later_are_another_image(tmp_path):
    rows = [{"image": picture(number), "caption": str(row)} for row, number in enumerate((1, 1, 2, 1))]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    source = open_table({"train": [tmp_path / "pairs.parquet"]}, "parquet", Opening("pairs", streaming=True))["train"]
    assert [(image.image_id, image.captions) for image in images_of(source)] == [
        ("0-0", ["0", "1"]),
        ("0-2", ["2"]),
        ("0-3", ["3"]),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "b.png", "caption": " "}, "row 1 .image 'b.png'. has an empty caption: 'caption' is ' '"),
        ({"image": "b.png", "caption": None}, "row 1 .image 'b.png'. has an empty caption"),
        ({"image": None, "caption": "a"}, "row 1 has no image: 'image' is None.*image_column="),
        ({"image": "https://example.org/b.png", "caption": "a"}, "row 1: the image is an address"),
    ],
)
def test_rows_that_are_no_pairs_are_named(row, message, tmp_path):
    with pytest.raises(ValueError, match=f"pairs.jsonl: {message}"):
        images_of(stream(write_rows(tmp_path, [{"image": "a.png", "caption": "a"}, row])))


def test_a_missing_image_id_and_a_missing_column_are_named(tmp_path):
    rows = [{"image": "a.png", "caption": "a", "image_id": number} for number in (1, None)]
    with pytest.raises(ValueError, match="pairs.jsonl: row 1 has no 'image_id'"):
        images_of(stream(write_rows(tmp_path, rows)))
    with pytest.raises(ValueError, match="no column 'caption'; they have image, title.*caption_column="):
        stream(write_rows(tmp_path, [{"image": "a.png", "title": "a"}]))


def test_shards_are_parts_and_a_broken_one_is_named(tmp_path):
    folder = layouts.numbered_parquet_files(tmp_path / "data")
    train = load_pairs(str(folder), streaming=True, held_out_fraction=0.001)["train"]
    assert train.num_parts == 3
    captions = [[caption for image in train.read(part) for caption in image.captions] for part in (2, 0, 1)]
    assert captions[1] + captions[2] + captions[0] == sum(CAPTIONS.values(), [])
    broken = folder / "train-00001-of-00003.parquet"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(ValueError, match="data, shard 1 of 3 cannot be read"):
        list(train.read(1))


def test_the_fingerprint_follows_the_files_of_images_too(tmp_path):
    layouts.json_lines(tmp_path / "data")
    source = stream(tmp_path / "data")
    before = source.fingerprint(0)
    state = (tmp_path / "data" / "5.png").stat()
    (tmp_path / "data" / "5.png").write_bytes(picture(30))
    os.utime(tmp_path / "data" / "5.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    assert source.fingerprint(0) != before
    (tmp_path / "data" / "5.png").unlink()
    assert source.fingerprint(0) != before


def test_images_in_a_repository_of_the_hub_are_fetched(tmp_path, monkeypatch):
    address = "hf://datasets/me/pictures@main/1.png"
    rows = [{"image": {"path": address, "bytes": None}, "caption": caption} for caption in ("a", "b")]
    datasets.Dataset.from_list(rows).to_json(tmp_path / "pairs.jsonl")
    opened = []

    def open_remote(path, mode):
        opened.append(path)
        return io.BytesIO(picture(7))

    monkeypatch.setattr(fsspec, "open", open_remote)
    (image,) = images_of(stream(tmp_path))
    assert (image.image_id, image.captions, image.image) == (address, ["a", "b"], picture(7))
    assert opened == [address] and streams.fsspec is fsspec


@pytest.fixture
def hub_data_set(tmp_path) -> str:
    """A data set of two configurations in the cache, as `load_dataset` leaves it there."""
    cache = datasets.config.HF_DATASETS_CACHE
    for config, rows in (("all", embedded_rows()), ("few", embedded_rows(0, 12))):
        folder = tmp_path / config / "pictures"
        folder.mkdir(parents=True)
        rows.to_parquet(folder / "train.parquet")
        datasets.load_dataset(str(folder))
        (prepared,) = cache.glob("pictures/*/*/*/pictures-train.arrow")
        shutil.copytree(prepared.parent, cache / "tests___pictures" / config / "0.0.0" / "a1b2")
        shutil.rmtree(cache / "pictures")
        info = cache / "tests___pictures" / config / "0.0.0" / "a1b2" / "dataset_info.json"
        info.write_text(json.dumps({**json.loads(info.read_text()), "config_name": config}))
    return "tests/pictures"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_hub_is_read_from_the_cache_with_its_configuration(hub_data_set, streaming):
    for config, number in (("all", 8), ("few", 6)):
        sources = load_pairs(hub_data_set, config_name=config, held_out_fraction=0.25, streaming=streaming)
        images = [image for source in sources.values() for image in images_of(source)]
        found = {image.open().getpixel((0, 0))[0] // 6: image.captions for image in images}
        assert found == {row: CAPTIONS[f"{row}.png"] for row in range(number)}
    with pytest.raises(ValueError, match="[Cc]onfig"):
        load_pairs(hub_data_set, config_name="none", streaming=streaming)


def test_paths_in_a_data_set_of_the_hub_do_not_lead_to_other_files(hub_data_set, tmp_path, monkeypatch):
    layouts.write_pictures(tmp_path / "pictures")
    for path, is_allowed in (("1.png", True), (str(tmp_path / "pictures" / "1.png"), True), ("/etc/hostname", False)):
        rows = [{"image": path, "caption": "a"}, {"image": path, "caption": "b"}] + [
            {"image": f"{number}.png", "caption": "c"} for number in range(2, 8)
        ]
        loaded = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
        monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, loaded=loaded: loaded)
        sources = load_pairs(hub_data_set, image_folder=str(tmp_path / "pictures"))
        if is_allowed:
            assert sum(image.open().size == (4, 4) for source in sources.values() for image in images_of(source)) == 7
        else:
            with pytest.raises(ValueError, match="'/etc/hostname' does not lie in the folder of images"):
                for source in sources.values():
                    images_of(source)
