"""Every layout of the same pairs gives the same pairs; parts, fingerprints, held-out splits; what is no layout."""

import gc
import json
import os
import shutil
from pathlib import Path

import pytest

from modeling_asymvlm.pairs.held_out import HashRange
from modeling_asymvlm.pairs.layouts import FILES, FOLDERS, SPLITS, load_pairs
from tests.support import layouts
from tests.support.layouts import CAPTIONS, READ_AS_A_WHOLE, STREAMED


CASES = [pytest.param(layout, False, id=layout.__name__) for layout in (*STREAMED, *READ_AS_A_WHOLE)]
CASES += [pytest.param(layout, True, id=f"{layout.__name__} streamed") for layout in STREAMED]


PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "flickr8k_images"


def load(path, **options):
    return load_pairs(str(path), held_out_fraction=0.25, **options)


def images_of(source) -> list:
    return [image for part in range(source.num_parts) for image in source.read(part)]


def fingerprints(sources) -> list[str]:
    return [source.fingerprint(part) for source in sources.values() for part in range(source.num_parts)]


def require_the_pairs(sources) -> None:
    assert set(sources) == set(SPLITS)
    found = {}
    for source in sources.values():
        images = images_of(source)
        assert len({image.image_id for image in images}) == len(images)
        if source.num_images is not None:
            assert (source.num_images, source.num_captions) == (len(images), 2 * len(images))
        found |= {f"{image.open().getpixel((0, 0))[0] // 6}.png": list(image.captions) for image in images}
    assert found == CAPTIONS


@pytest.mark.parametrize(("layout", "streaming"), CASES)
def test_every_layout_gives_the_same_images_captions_and_grouping(layout, streaming, tmp_path):
    require_the_pairs(load(layout(tmp_path / "data"), streaming=streaming))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_csv_file_is_streamed(tmp_path):
    require_the_pairs(load(layouts.comma_separated(tmp_path / "data"), streaming=True))
    gc.collect()  # datasets leaves the CSV files that it streams open


@pytest.mark.parametrize(("layout", "streaming"), CASES)
def test_fingerprints_change_with_a_caption_or_a_picture_and_not_otherwise(layout, streaming, tmp_path, monkeypatch):
    path = layout(tmp_path / "data")
    before = fingerprints(load(path, streaming=streaming))
    assert fingerprints(load(path, streaming=streaming)) == before
    for change in ("caption", "picture"):
        shutil.rmtree(tmp_path / "data")
        with monkeypatch.context() as changed:
            if change == "caption":
                captions = {**CAPTIONS, "3.png": ["green", CAPTIONS["3.png"][1]]}
                changed.setattr(layouts, "CAPTIONS", captions)
                rows = [{"image": name, "caption": text} for name, texts in captions.items() for text in texts]
                changed.setattr(layouts, "ROWS", rows)
            else:
                pictures = [layouts.picture(40 if number == 3 else number) for number in range(8)]
                changed.setattr(layouts, "picture", pictures.__getitem__)
            layout(tmp_path / "data")
        after = fingerprints(load(path, streaming=streaming))
        assert after != before
        before = after


@pytest.mark.parametrize("layout", [layouts.json_lines, layouts.parquet_with_pictures, layouts.parquet_with_paths])
def test_the_fingerprint_of_a_part_tells_its_own_pairs_and_their_order(layout, tmp_path):
    train = load(layout(tmp_path / "data"))["train"]
    train.images_per_part = 2
    ordered = [train.fingerprint(part) for part in range(train.num_parts)]
    assert len(set(ordered)) == 2
    swapped = train.of_images([1, 0, 2, 3])
    assert swapped.fingerprint(0) != ordered[0] and swapped.fingerprint(1) == ordered[1]
    moved = train.of_images([2, 3, 0, 1])
    assert [moved.fingerprint(0), moved.fingerprint(1)] == ordered[::-1]


def test_a_moved_or_linked_folder_keeps_its_fingerprints(tmp_path):
    for layout in (layouts.image_folder, layouts.json_lines, layouts.coco_file):
        path = layout(tmp_path / layout.__name__)
        before = fingerprints(load(path))
        (tmp_path / layout.__name__).rename(tmp_path / f"moved-{layout.__name__}")
        moved = Path(str(path).replace(layout.__name__, f"moved-{layout.__name__}"))
        assert fingerprints(load(moved)) == before
        (tmp_path / layout.__name__).symlink_to(tmp_path / f"moved-{layout.__name__}")
        assert fingerprints(load(path)) == before


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("layout", [layouts.numbered_parquet_files, layouts.flickr8k_commas])
def test_parts_divide_the_images_for_every_size(layout, size, tmp_path):
    train = load(layout(tmp_path / "data"))["train"]
    whole = [(image.image_id, list(image.captions)) for image in images_of(train)]
    train.images_per_part = size
    parts = [list(train.read(part)) for part in range(train.num_parts)]
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert 0 < len(parts[-1]) <= size
    assert [(image.image_id, list(image.captions)) for part in parts for image in part] == whole
    assert [image.image_id for image in train.read(0)] == [image.image_id for image in parts[0]]


def test_splits_are_held_out_by_image_and_by_the_seed(tmp_path):
    path = layouts.json_lines(tmp_path / "data")
    sources = load(path, seed=3)
    assert {name: source.num_images for name, source in sources.items()} == {"train": 4, "validation": 2, "test": 2}
    assert set().union(*({image.image_id for image in images_of(source)} for source in sources.values())) == set(
        CAPTIONS
    )
    assert fingerprints(load(path, seed=3)) == fingerprints(sources) != fingerprints(load(path, seed=4))
    with pytest.raises(ValueError, match="8 training images are too few to hold out validation and test splits of 4"):
        load_pairs(str(path), held_out_fraction=0.45)


def test_a_streams_held_out_splits_do_not_depend_on_its_shards(tmp_path):
    path = layouts.unnamed_tars(tmp_path / "data")
    sources = load(path, seed=1)
    by_split = {name: [image.image_id for image in images_of(source)] for name, source in sources.items()}
    for name, source in sources.items():
        parts = [[image.image_id for image in source.read(part)] for part in reversed(range(4))]
        assert [image_id for part in reversed(parts) for image_id in part] == by_split[name]
    again = {name: [image.image_id for image in images_of(source)] for name, source in load(path, seed=1).items()}
    assert again == by_split
    shares = [HashRange(5, 0.0, 0.1), HashRange(5, 0.1, 0.2), HashRange(5, 0.2, 1.0)]
    counts = [sum(str(number) in share for number in range(20_000)) for share in shares]
    assert sum(counts) == 20_000
    deviations = [abs(count / 20_000 - share) for count, share in zip(counts, (0.1, 0.1, 0.8), strict=True)]
    assert max(deviations) < 5 * (0.8 * 0.2 / 20_000) ** 0.5


def test_a_folder_of_images_elsewhere_is_named(tmp_path):
    path = layouts.coco_file(tmp_path / "data")
    (tmp_path / "data" / "train2017").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="its images, such as '0.png', are not in .*train2017.*image_folder="):
        load(path)
    assert len(images_of(load(path, image_folder=str(tmp_path / "elsewhere"))["train"])) == 4
    rows = layouts.json_lines(tmp_path / "rows")
    shutil.rmtree(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    for file in (tmp_path / "rows").glob("*.png"):
        file.rename(tmp_path / "elsewhere" / file.name)
    for streaming in (False, True):
        sources = load(rows, image_folder=str(tmp_path / "elsewhere"), streaming=streaming)
        assert sum(image.open().size == (4, 4) for source in sources.values() for image in images_of(source)) == 8
    with pytest.raises(FileNotFoundError, match="no folder of images at '.*nowhere'"):
        load(rows, image_folder=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (layouts.coco_file, {"streaming": True}, "streaming= means nothing"),
        (layouts.flickr8k_commas, {"caption_column": "text"}, "caption_column= means nothing"),
        (layouts.one_tar, {"image_folder": "."}, "image_folder= means nothing"),
        (layouts.json_lines, {"config_name": "plain"}, "config_name= means nothing"),
        (layouts.karpathy_coco, {"image_id_column": "imgid"}, "image_id_column= means nothing"),
        (layouts.saved_data_set, {"streaming": True}, "streaming= means nothing"),
    ],
)
def test_options_that_a_layout_does_not_have_are_refused(layout, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(layout(tmp_path / "data"), **options)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="flickr8k_images is not beside the project")
def test_real_photographs_with_five_captions_each():
    rows = [json.loads(line) for line in (PHOTOGRAPHS / "metadata.jsonl").read_text().splitlines()]
    for streaming in (False, True):
        sources = load(PHOTOGRAPHS, streaming=streaming)
        images = [image for source in sources.values() for image in images_of(source)]
        found = {image.source_name: list(image.captions) for image in images}
        assert found == {row["file_name"]: row["captions"] for row in rows} and len(images) == len(rows)
        assert all(min(image.open().size) > 100 for image in images[:3])


def test_what_is_no_layout_is_named_with_what_is(tmp_path):
    (tmp_path / "pairs.txt").write_text("x")
    with pytest.raises(ValueError, match="must end in one of .json, .jsonl, .csv, .tsv, .parquet, or be a .tar"):
        load(tmp_path / "pairs.txt")
    with pytest.raises(ValueError, match="of no layout that is recognised.*COCO.*Karpathy.*embeddings="):
        load(tmp_path)
    (tmp_path / "img_emb").mkdir()
    with pytest.raises(ValueError, match="features of clip-retrieval, .*modeling_asymvlm convert"):
        load(tmp_path)


def test_splits_that_cannot_be_told_are_refused(tmp_path):
    folder = layouts.splits_by_other_names(tmp_path / "data")
    shutil.copy(folder / "val.jsonl", folder / "validation.jsonl")
    with pytest.raises(ValueError, match="val.jsonl both stand for the split validation|validation.jsonl both"):
        load(folder)
    os.remove(folder / "validation.jsonl")
    os.remove(folder / "train.jsonl")
    with pytest.raises(ValueError, match="of no layout that is recognised"):
        load(folder)
    folder = layouts.numbered_parquet_files(tmp_path / "numbered")
    os.remove(folder / "train-00001-of-00003.parquet")
    with pytest.raises(ValueError, match="of 3 files, 1 are missing .* the first is number 1"):
        load(folder)
    folder = layouts.tars_of_splits(tmp_path / "tars")
    shutil.copy(folder / "cc-val-000.tar", folder / "more.tar")
    with pytest.raises(ValueError, match="more.tar names no split, but other shards do"):
        load(folder)


def test_a_refusal_names_every_layout_of_the_tables(tmp_path):
    with pytest.raises(ValueError) as refused:
        load(tmp_path)
    for layout in FOLDERS:
        assert f"{layout.name} ({layout.looks_like})" in str(refused.value)
    (tmp_path / "pairs.txt").write_text("x")
    with pytest.raises(ValueError) as refused:
        load(tmp_path / "pairs.txt")
    for layout in FILES:
        assert layout.looks_like in str(refused.value)


def test_a_table_that_begins_as_annotations_do_is_a_table(tmp_path):
    row = {"dataset": "a", "image": "0.png", "caption": "red"}
    (tmp_path / "rows.json").write_text("\n".join(json.dumps({**row, "image": f"{n}.png"}) for n in range(8)))
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(layouts.picture(number))
    assert sum(source.num_images for source in load(tmp_path / "rows.json").values()) == 8
