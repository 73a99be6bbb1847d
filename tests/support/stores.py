"""Splits of random features."""

import numpy as np
import torch

from modeling_asymvlm.store.embedding_store import EmbeddingSplit


def make_split(seed: int, images: int = 5, texts: int = 12, dim: int = 6) -> EmbeddingSplit:
    generator = torch.Generator().manual_seed(seed)
    return EmbeddingSplit(
        image_ids=[f"image-{row}" for row in range(images)],
        image_features=torch.randn(images, dim, generator=generator),
        captions=[f"caption {row}" for row in range(texts)],
        text_features=torch.randn(texts, dim, generator=generator),
        text_image_index=torch.randint(images, (texts,), generator=generator),
        columns={"ambiguity": np.arange(texts) / 7},
    )
