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
from PIL import Image  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import Whitespace  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)


transformers.utils.logging.disable_progress_bar()
logging.getLogger("datasets").setLevel(logging.ERROR)

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"image_size": 32, "patch_size": 8}


def make_tiny_clip() -> CLIPModel:
    """A random CLIP of 0.05 M parameters, 24-dimensional, with a context of 16 tokens."""
    torch.manual_seed(0)
    text = {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 1}
    config = CLIPConfig(text_config={**TOWER, **text}, vision_config={**TOWER, **VISION}, projection_dim=24)
    return CLIPModel(config).eval()


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


def make_tiny_processor() -> CLIPProcessor:
    """Words and pictures for `tiny_clip`; its end-of-text token closes every text."""
    words = {"<unk>": 0, "<pad>": 1, "red": 2, "picture": 3, "<end>": 98, **{str(n): 10 + n for n in range(40)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 98)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    return CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), fast)


@pytest.fixture
def tiny_processor() -> CLIPProcessor:
    return make_tiny_processor()


def make_picture_folder(folder: Path, number_of_pictures: int) -> Path:
    """An image folder: pictures of one colour each, with two captions each that hold their number."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(number_of_pictures):
        Image.new("RGB", (32, 32), (number * 6, 0, 0)).save(folder / "images" / f"{number}.png")
        rows.append({"file_name": f"images/{number}.png", "captions": [f"red {number}", f"picture {number}"]})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture
def picture_folder(tmp_path) -> Path:
    return make_picture_folder(tmp_path / "data", 8)


@pytest.fixture
def pair_rows(picture_folder) -> list[dict]:
    """The pairs of `picture_folder`, one row a caption, with relative paths."""
    rows = [json.loads(line) for line in (picture_folder / "metadata.jsonl").read_text().splitlines()]
    return [{"image": row["file_name"], "caption": caption} for row in rows for caption in row["captions"]]
