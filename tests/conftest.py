"""Tiny backbones and data made on the spot; no test touches the network."""

import json
import logging
import os
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers, and the processes they start, share the cores
    os.environ["OMP_NUM_THREADS"] = "1"

import datasets  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import (  # noqa: E402
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipModel,
)

from tests.support.pictures import make_picture_folder  # noqa: E402
from tests.support.tiny_models import TOWER, VISION, make_tiny_clip, make_tiny_processor  # noqa: E402


transformers.utils.logging.disable_progress_bar()
logging.getLogger("datasets").setLevel(logging.ERROR)


@pytest.fixture
def tiny_clip() -> CLIPModel:
    return make_tiny_clip()


@pytest.fixture
def tiny_siglip() -> SiglipModel:
    """A random SigLIP, 32-dimensional, with a context of 16 tokens."""
    torch.manual_seed(0)
    text = {"vocab_size": 99, "max_position_embeddings": 16, "projection_size": 32, "pad_token_id": 1}
    return SiglipModel(SiglipConfig(text_config={**TOWER, **text}, vision_config={**TOWER, **VISION})).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four tokenised texts of unequal length, padded on the right, and four images."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 97, (4, 10), generator=generator)
    input_ids[:, 0] = 97
    attention_mask = torch.ones_like(input_ids)
    for row, length in enumerate((10, 7, 5, 3)):
        input_ids[row, length - 1] = 98
        input_ids[row, length:] = 1
        attention_mask[row, length:] = 0
    pixel_values = torch.randn(4, 3, 32, 32, generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def tiny_processor() -> CLIPProcessor:
    return make_tiny_processor()


@pytest.fixture
def picture_folder(tmp_path) -> Path:
    return make_picture_folder(tmp_path / "data", 8)


@pytest.fixture
def pair_rows(picture_folder) -> list[dict]:
    """The pairs of `picture_folder`, one row a caption, with relative paths."""
    rows = [json.loads(line) for line in (picture_folder / "metadata.jsonl").read_text().splitlines()]
    return [{"image": row["file_name"], "caption": caption} for row in rows for caption in row["captions"]]
