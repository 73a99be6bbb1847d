"""A checkpoint with its features and pictures, small enough to make on the spot, for the tests of the page."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.pairs.layouts import load_pairs
from modeling_asymvlm.store.builder import cached_features
from tests.support.tiny_models import make_tiny_clip, make_tiny_processor
from tests.support.training import learned


FOLDER = Path(__file__).resolve().parents[2] / "demo"
NUM_IMAGES = {"train": 60, "validation": 100, "test": 30}


@dataclass(frozen=True)
class Case:
    """Where a checkpoint, with its features in it, and the pairs that these were made from lie."""

    model: Path
    data: Path


def make_case(folder: Path) -> Case:
    """An untrained head on the tiny CLIP; pictures of one colour with one caption each, some of them the same."""
    data, number = folder / "data", 0
    (data / "images").mkdir(parents=True)
    for split, count in NUM_IMAGES.items():
        rows = []
        for _ in range(count):
            Image.new("RGB", (32, 32), (number, 255 - number, number % 7 * 30)).save(data / "images" / f"{number}.png")
            words = [str(number // 30), str(number % 30), "red", "picture", str(number % 37)]
            caption = " ".join(words[: 2 + number % 4]) if number % 10 else "picture"
            image_id = f"picture-{number}"
            rows.append({"image": f"images/{number}.png", "caption": caption, "image_id": image_id})
            number += 1
        (data / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    torch.manual_seed(0)
    clip, processor, model_folder = make_tiny_clip(), make_tiny_processor(), folder / "model"
    clip.save_pretrained(folder / "backbone")
    model = AsymVLMModel.from_vlm_pretrained(folder / "backbone", **learned(hidden_size=32)).eval()
    model.save_pretrained(model_folder, save_backbone=True)
    processor.save_pretrained(model_folder)
    cached_features(model_folder / "embeddings", model, processor, load_pairs(str(data)), batch_size=64)
    return Case(model_folder, data)
