"""Pairs from files, folders and data sets; broken images; features and their fingerprint."""

import json
import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPImageProcessor, CLIPProcessor, PreTrainedTokenizerFast

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.pairs import (
    embed_pairs,
    features_fingerprint,
    load_splits,
    read_pairs,
    with_held_out_splits,
)


logging.getLogger("datasets").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def folder(tmp_path):
    """Eight pictures of one colour each, named by it, with two captions each."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    rows = []
    for number in range(8):
        Image.new("RGB", (32, 32), (number * 30, 0, 0)).save(images / f"{number}.png")
        rows.append({"file_name": f"images/{number}.png", "captions": [f"red {number}", f"picture {number}"]})
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "data"


def rows_with_paths(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    return [{"image": row["file_name"], "caption": caption} for row in rows for caption in row["captions"]]


@pytest.fixture
def processor() -> CLIPProcessor:
    words = ["<unk>", "<pad>", "<end>", "red", "picture", *map(str, range(8))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    return CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), fast)


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
def test_files_of_every_format_give_the_pairs_of_the_image_folder(folder, file_format):
    expected = read(folder)
    assert len(expected.images) == 8
    assert expected.captions[:3] == ["red 0", "picture 0", "red 1"]
    assert expected.text_image_index == [row // 2 for row in range(16)]
    pairs = read(write_file(folder, rows_with_paths(folder), file_format))
    assert (pairs.captions, pairs.text_image_index) == (expected.captions, expected.text_image_index)
    for row in range(8):
        assert pairs.open_image(row).getpixel((0, 0)) == (row * 30, 0, 0)
        assert expected.open_image(row).getpixel((0, 0)) == (row * 30, 0, 0)


def test_rows_with_one_image_id_share_an_image_and_keep_their_ambiguity(folder):
    rows = [
        {**row, "image_id": f"id-{row['image']}", "ambiguity": number / 2}
        for number, row in enumerate(rows_with_paths(folder))
    ]
    pairs = read(write_file(folder, rows, "parquet"))
    assert pairs.image_ids == [f"id-images/{number}.png" for number in range(8)]
    assert pairs.columns == {"ambiguity": [number / 2 for number in range(16)]}
    some = pairs.of_images([5, 2])
    assert some.captions == ["red 2", "picture 2", "red 5", "picture 5"]
    assert some.text_image_index == [1, 1, 0, 0]
    assert some.columns == {"ambiguity": [2.0, 2.5, 5.0, 5.5]}


def test_a_folder_of_files_named_after_splits_and_a_saved_data_set(folder, tmp_path):
    splits = tmp_path / "splits"
    splits.mkdir()
    rows = [{"image": str(folder / row["image"]), "caption": row["caption"]} for row in rows_with_paths(folder)]
    for name, part in (("train", rows[:8]), ("validation", rows[8:12]), ("test", rows[12:])):
        (splits / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in part))
    loaded, base = load_splits(str(splits))
    assert {name: len(read_pairs(split, base).images) for name, split in loaded.items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }


def test_missing_splits_are_held_out_by_image(folder):
    pairs = {"train": read(folder)}
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


@pytest.mark.parametrize("caption", ["", "   ", None, [], ["a", ""]])
def test_empty_captions_are_named(folder, caption):
    rows = [{"image": "images/0.png", "caption": ["fine"] if isinstance(caption, list) else "fine"}] * 2
    file = write_file(folder, [*rows, {"image": "images/1.png", "caption": caption}], "jsonl")
    with pytest.raises(ValueError, match="Row 2 .*images/1.png.* has an empty caption: 'caption' is"):
        read(file)


def test_missing_columns_are_named_with_what_there_is(folder):
    file = write_file(folder, rows_with_paths(folder), "jsonl")
    with pytest.raises(ValueError, match="no column 'title'; they have image, caption.*--caption_column"):
        read(file, caption_column="title")
    with pytest.raises(ValueError, match="no column 'photo'; they have image, caption.*--image_column"):
        read(file, image_column="photo")


def test_one_pair_is_too_few(folder):
    with pytest.raises(ValueError, match="hold 1 pairs, but .* at least two"):
        read(write_file(folder, rows_with_paths(folder)[:1], "jsonl"))


def test_sources_that_are_no_data_are_named(tmp_path):
    (tmp_path / "pairs.txt").write_text("x")
    with pytest.raises(ValueError, match="must end in one of .json, .jsonl, .csv, .parquet"):
        load_splits(str(tmp_path / "pairs.txt"))
    with pytest.raises(ValueError, match="neither metadata.jsonl nor a train.json"):
        load_splits(str(tmp_path))


def test_embedding_gives_the_backbones_features_in_order(folder, tiny_clip, processor):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    pairs = read(folder)
    split, broken = embed_pairs(model, processor, pairs, batch_size=3)
    assert broken == []
    assert split.captions == pairs.captions and split.text_image_index.tolist() == pairs.text_image_index
    with torch.no_grad():
        for row in (0, 7):
            pixels = processor(images=pairs.open_image(row), return_tensors="pt")["pixel_values"]
            expected = tiny_clip.get_image_features(pixels).pooler_output[0]
            torch.testing.assert_close(split.image_features[row], expected, rtol=0, atol=1e-5)
        tokens = processor(text=pairs.captions[5], return_tensors="pt")
        expected = tiny_clip.get_text_features(tokens["input_ids"]).pooler_output[0]
    torch.testing.assert_close(split.text_features[5], expected, rtol=0, atol=1e-5)


def test_broken_images_are_named_or_skipped_and_counted_when_asked(folder, tiny_clip, processor):
    (folder / "images" / "2.png").write_bytes((folder / "images" / "2.png").read_bytes()[:40])
    (folder / "images" / "5.png").write_text("no picture")
    (folder / "images" / "6.png").unlink()
    pairs = read(write_file(folder, rows_with_paths(folder), "jsonl"))
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    with pytest.raises(ValueError, match="Image 'images/2.png' cannot be read: .* pass --skip_broken_images"):
        embed_pairs(model, processor, pairs, batch_size=3)
    split, broken = embed_pairs(model, processor, pairs, batch_size=3, skip_broken_images=True)
    assert broken == ["'images/2.png'", "'images/5.png'", "'images/6.png'"]
    assert len(split.image_ids) == 5 and len(split.captions) == 10
    whole = [number for number in range(8) if number not in (2, 5, 6)]
    assert split.captions == [f"{word} {number}" for number in whole for word in ("red", "picture")]
    assert split.text_image_index.tolist() == np.repeat(range(5), 2).tolist()


def test_skipping_every_image_is_an_error(folder, tiny_clip, processor):
    for file in (folder / "images").iterdir():
        file.write_text("no picture")
    pairs = read(write_file(folder, rows_with_paths(folder), "jsonl"))
    with pytest.raises(ValueError, match="Only 0 pairs are left after skipping 8 broken images"):
        embed_pairs(
            AsymVLMModel.from_vlm_pretrained(tiny_clip), processor, pairs, batch_size=4, skip_broken_images=True
        )


def test_the_fingerprint_follows_the_backbone_the_processor_and_the_data(folder, tiny_clip, processor):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    pairs = {"train": read(folder)}
    first = features_fingerprint(model, processor, pairs)
    assert features_fingerprint(model, processor, pairs) == first
    torch.nn.init.ones_(model.text_head.output_layer.weight)
    assert features_fingerprint(model, processor, pairs) == first

    def changed(fingerprint) -> list[str]:
        return [name for name in first if fingerprint[name] != first[name]]

    torch.nn.init.zeros_(model.vlm.logit_scale)
    assert changed(features_fingerprint(model, processor, pairs)) == ["backbone"]
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    assert changed(features_fingerprint(model, processor, pairs)) == ["processor"]
    Image.new("RGB", (32, 32), (1, 2, 3)).save(folder / "images" / "3.png")
    assert "data" in changed(features_fingerprint(model, processor, {"train": read(folder)}))
