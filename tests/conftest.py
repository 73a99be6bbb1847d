"""Tiny backbones and data made on the spot; no test touches the network."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel  # noqa: E402


transformers.utils.logging.disable_progress_bar()

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"image_size": 32, "patch_size": 8}


@pytest.fixture
def tiny_clip() -> CLIPModel:
    """A random CLIP of 0.05 M parameters, 24-dimensional, with a context of 16 tokens."""
    torch.manual_seed(0)
    text = {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 1}
    config = CLIPConfig(text_config={**TOWER, **text}, vision_config={**TOWER, **VISION}, projection_dim=24)
    return CLIPModel(config).eval()


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
