"""FeaturePairs: a batch holds matching rows."""

import torch
from torch.utils.data import DataLoader

from modeling_asymvlm.batches import FeaturePairs
from modeling_asymvlm.data import EmbeddingSplit


def make_split(seed: int, images: int = 5, texts: int = 12, dim: int = 6) -> EmbeddingSplit:
    generator = torch.Generator().manual_seed(seed)
    return EmbeddingSplit(
        image_ids=[f"image-{row}" for row in range(images)],
        image_features=torch.randn(images, dim, generator=generator),
        captions=[f"caption {row}" for row in range(texts)],
        text_features=torch.randn(texts, dim, generator=generator),
        text_image_index=torch.randint(images, (texts,), generator=generator),
    )


def test_a_batch_holds_matching_rows():
    split = make_split(4)
    pairs = FeaturePairs(split)
    loader = DataLoader(pairs, batch_size=5, shuffle=True, collate_fn=FeaturePairs.collate)
    seen = []
    for batch in loader:
        for text, image, image_id in zip(*(batch[name] for name in batch), strict=True):
            caption = int((split.text_features == text).all(dim=1).nonzero())
            assert image_id == split.text_image_index[caption]
            assert torch.equal(image, split.image_features[image_id])
            seen.append(caption)
    assert list(batch) == ["text_features", "image_features", "image_ids"]
    assert sorted(seen) == list(range(12))
    assert torch.equal(pairs[3]["text_features"], split.text_features[3:4])
