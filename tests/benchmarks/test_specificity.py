"""The command that judges a trained model by specificity: its tables, against the functions and brute force."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from benchmarks import specificity
from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.evaluation import read_hierarchies
from modeling_asymvlm.model.objective import pair_scores
from modeling_asymvlm.reporting.specificity import evaluate_hierarchies, evaluate_word_removal
from modeling_asymvlm.scenes import generate, scenes
from modeling_asymvlm.scenes.places import BACKBONE
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore


MODEL_DIR = BACKBONE
LISTS = [["a picture", "a red shape", "a small red circle"], ["an image", "a blue ring on a dark background"]]


@pytest.fixture(scope="module")
def model() -> AsymVLMModel:
    torch.manual_seed(0)
    model = AsymVLMModel.from_vlm_pretrained(MODEL_DIR, distribution="vmf").eval()
    torch.nn.init.normal_(model.text_head.output_layer.weight)
    return model


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    """The folder of a trained model: weights, processor and features of 30 pictures with a caption or two."""
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = AutoProcessor.from_pretrained(MODEL_DIR)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    random = np.random.default_rng(0)
    drawn = scenes.all_scenes()[random.integers(1440, size=30)]
    index = torch.arange(40) % 30
    captions = [scenes.write_caption(drawn[row], scenes.draw_named(random, 1)[0], random) for row in index]
    captions[3] = captions[17] = "a  picture"
    captions[5] = "a picture"
    with torch.no_grad():
        texts = model.vlm.get_text_features(**processor(text=captions, padding=True, return_tensors="pt"))
    images = torch.randn(30, texts.pooler_output.shape[1], generator=torch.Generator().manual_seed(0))
    names = [str(row) for row in range(30)]
    split = EmbeddingSplit(names, images, captions, texts.pooler_output, index)
    EmbeddingStore.write(folder / "embeddings", {"test": split}, {})
    return folder


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["specificity.py", *map(str, arguments)])
    specificity.main()


def cells(printed: str, first: str) -> list[str]:
    """The row of a table that begins with a cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    return next(line for line in lines if line[0] == first)


def test_the_tables_hold_the_figures_of_the_functions(model, checkpoint, tmp_path, monkeypatch, capsys):
    file = tmp_path / "hierarchies.jsonl"
    file.write_text("\n".join(map(json.dumps, LISTS)))
    run(monkeypatch, "--model", checkpoint, "--hierarchies", file, "--captions", 1000)
    printed = capsys.readouterr().out
    split = EmbeddingStore(checkpoint / "embeddings").split("test")
    processor = AutoProcessor.from_pretrained(MODEL_DIR)
    captions = [split.captions[row] for row in np.random.default_rng(0).permutation(40)]
    for name, mask in (("deleted", None), ("masked by `<unknown>`", "<unknown>")):
        metrics = evaluate_word_removal(model, processor, captions, mask=mask)
        figures = [f"{metrics[key]:.3f}" for key in ("mean_group_spearman", "pair_accuracy", "rising_share")]
        assert cells(printed, name) == [name, str(metrics["num_captions"]), *figures]
    metrics = evaluate_hierarchies(model, processor, read_hierarchies(file))
    assert cells(printed, "kappa")[1:3] == ["2", f"{metrics['mean_group_spearman']:.3f}"]
    assert cells(printed, "number of words")[2] == cells(printed, "number of words")[5] == "1.000"

    eta = model(text_features=split.text_features[:]).text_embeds.detach()
    order = pair_scores(eta, split.image_features[:], distribution="vmf").argsort(dim=1, descending=True, stable=True)
    words = [" ".join(caption.split()) for caption in split.captions]
    precisions = []
    for row, ranked in zip(words, order.tolist(), strict=True):
        right = {image for image, other in zip(split.text_image_index.tolist(), words, strict=True) if other == row}
        precisions.append(len(right & set(ranked[: len(right)])) / len(right))
    kind = "captions of the same words"
    assert cells(printed, "text -> image")[1:3] == [kind, "40"]
    assert cells(printed, "text -> image")[5] == f"{np.mean(precisions):.4f}"
    assert cells(printed, "image -> text")[1:3] == [kind, "30"]
    assert "all that fit" not in printed


def test_right_answers_are_shared_by_captions_of_the_same_words(checkpoint):
    split = EmbeddingStore(checkpoint / "embeddings").split("test")
    images, captions = specificity.answers_of_the_same_words(split)
    assert [sorted(images[row]) for row in (3, 5, 17)] == [[3, 5, 17]] * 3
    assert all({3, 5, 17} <= set(captions[image]) for image in (3, 5, 17))
    for caption, of_caption in enumerate(images):
        assert split.text_image_index[caption] in of_caption
        assert all(caption in captions[image] for image in of_caption)
    assert sum(map(len, images)) == sum(map(len, captions))


def test_on_scenes_every_picture_that_a_caption_fits_is_right(model, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(specificity, "data_folder", lambda: folder)
    data = generate.make_split("test", 60, seed=0)
    names, captions = list(data["image_id"]), list(data["caption"])
    features = torch.randn(2, 60, model.config.projection_dim, generator=torch.Generator().manual_seed(0))
    split = EmbeddingSplit(names, features[0], captions, features[1], torch.arange(60))
    assert specificity.answers_that_fit(split) is None
    data.to_parquet(str(folder / "test.parquet"))

    seen = [
        {attribute: row[attribute] for attribute in scenes.ATTRIBUTES}
        for row in data.select_columns(scenes.ATTRIBUTES)
    ]
    images, texts = specificity.answers_that_fit(split)
    for caption, (scene, named) in enumerate(zip(seen, data["named_attributes"], strict=True)):
        fitting = [
            image for image, other in enumerate(seen) if all(other[name] == scene[name] for name in named.split())
        ]
        assert images[caption].tolist() == fitting
    assert all(image in images[caption] for image, of_image in enumerate(texts) for caption in of_image)
    assert sum(map(len, texts)) == sum(map(len, images)) > 60
    rows = specificity.retrieval_rows(model, split)
    assert [row[1] for row in rows] == ["captions of the same words"] * 2 + ["all that fit"] * 2

    other = EmbeddingSplit(names, features[0], captions[::-1], features[1], torch.arange(60))
    assert specificity.answers_that_fit(other) is None


def test_hierarchies_of_scenes_name_one_attribute_more_at_each_level():
    hierarchies = specificity.hierarchies_of_scenes(50)
    assert hierarchies.level.tolist() == list(range(6)) * 50
    assert hierarchies.group.tolist() == [group for group in range(50) for _ in range(6)]
    for caption, level in zip(hierarchies.captions, hierarchies.level, strict=True):
        phrases = {
            name: [phrase for value in values for phrase in value if f" {phrase} " in f" {caption} "]
            for name, values in scenes.WORDS.items()
        }
        assert sum(map(bool, phrases.values())) == level


def test_an_unknown_word_that_ends_the_text_is_no_mask():
    tokenizer = AutoProcessor.from_pretrained(MODEL_DIR).tokenizer
    assert specificity.default_mask(tokenizer) == "<unknown>"
    tokenizer.unk_token = tokenizer.eos_token
    assert specificity.default_mask(tokenizer) is None
    tokenizer.mask_token = "<mask>"
    assert specificity.default_mask(tokenizer) == "<mask>"


def test_mistakes_end_in_one_sentence(checkpoint, tmp_path, monkeypatch, capsys):
    AsymVLMModel(AsymVLMConfig(projection_dim=8)).save_pretrained(tmp_path / "head")
    AutoProcessor.from_pretrained(MODEL_DIR).save_pretrained(tmp_path / "head")
    store = EmbeddingStore(checkpoint / "embeddings").split("test")
    EmbeddingStore.write(tmp_path / "head" / "embeddings", {"test": store}, {})
    for arguments, message in (
        (["--model", tmp_path / "head"], "with its backbone"),
        (["--model", checkpoint, "--captions", "-1"], "--captions must be at least 1, got -1"),
        (["--model", checkpoint, "--hierarchies", tmp_path / "a.txt"], "is no hierarchy file"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        assert message in capsys.readouterr().err
