"""Splits that a calibration is made from, and heads that are calibrated on them."""

from functools import cache

import torch

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.calibration.calibration import Calibration
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


DIM = 24


def planted_split(
    seed: int, images: int = 60, captions: int = 120, dim: int = DIM, *, shown: float = 4.0, shuffled: bool = False
) -> EmbeddingSplit:
    """
    Captions that resemble their image, some only vaguely; vagueness shows in the first dimension of a text, `shown`
    times as large, so that a text alone gives it away. `shuffled` deals the images out anew.
    """
    generator = torch.Generator().manual_seed(seed)
    image_features = torch.randn(images, dim, generator=generator)
    index = torch.arange(captions) % images
    vagueness = torch.rand(captions, 1, generator=generator)
    noises = torch.randn(captions, dim, generator=generator)
    text_features = image_features[index] + (0.2 + 2 * vagueness) * noises
    text_features = text_features + shown * vagueness * torch.eye(dim)[0]
    if shuffled:
        index = index[torch.randperm(captions, generator=generator)]
    names = [f"image-{row}" for row in range(images)]
    texts = [f"caption {row}" for row in range(captions)]
    return EmbeddingSplit(names, image_features, texts, text_features, index)


def untrained_head(distribution: str = "vmf", seed: int = 5, **config) -> AsymVLMModel:
    torch.manual_seed(seed)
    head = {"projection_dim": DIM, "hidden_size": 32, "distribution": distribution, **config}
    return AsymVLMModel(AsymVLMConfig(**head)).eval()


@cache
def planted_calibration(distribution: str = "vmf", mean_direction: str = "refined") -> Calibration:
    """Of an untrained head, on 200 training and 120 validation captions; not to be changed."""
    model = untrained_head(distribution, mean_direction=mean_direction)
    return Calibration.fit(model, planted_split(0, 100, 200), planted_split(1), corpus="planted captions")
