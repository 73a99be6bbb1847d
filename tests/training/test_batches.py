"""FeaturePairs and GlobalOrder: a batch holds matching rows; the order of an epoch is one, whoever asks."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_asymvlm.training.batches import FeaturePairs, GlobalOrder
from tests.support.stores import make_split


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


def test_an_epoch_holds_every_pair_once_in_an_order_of_seed_and_epoch():
    order = GlobalOrder(1000, seed=1)
    first = list(order)
    assert len(order) == 1000 and sorted(first) == list(range(1000)) and first != sorted(first)
    order.set_epoch(1)
    second = list(order)
    assert sorted(second) == sorted(first) and second != first
    assert list(GlobalOrder(1000, seed=2)) != first
    order.set_epoch(0)
    assert list(order) == first == list(GlobalOrder(1000, seed=1))


@pytest.mark.parametrize(
    ("counts", "batch"),
    [
        ([5] * 300, 100),  # five captions each, as in COCO
        ([5] * 100, 100),  # a batch holds every image
        ([1] * 200 + [2] * 50 + [30], 64),
        ([1] * 63 + [500], 64),  # one image with nearly all captions
        ([3] * 7, 2),
    ],
)
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_no_batch_holds_an_image_twice(counts, batch, epoch):
    images = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(3))]
    order = GlobalOrder(len(images), seed=4, global_batch_size=batch, text_image_index=images)
    order.set_epoch(epoch)
    pairs = np.array(list(order))
    assert len(pairs) == len(order) and len(pairs) % batch == 0
    for rows in pairs.reshape(-1, batch):
        assert len(set(images[rows].tolist())) == batch
    # What is left out at the end: pairs that wait because their image has more captions than there are batches left.
    possible = int(torch.bincount(images).clamp(max=len(images) // batch).sum()) // batch
    assert len(pairs) // batch >= 0.9 * possible


def test_every_caption_has_its_turn_when_images_have_equally_many():
    images = torch.arange(300).repeat(5)
    order = GlobalOrder(1500, seed=5, global_batch_size=100, text_image_index=images)
    seen = list(order)
    assert len(seen) >= 1400 and len(set(seen)) == len(seen)


def test_more_pairs_in_a_batch_than_images_are_refused():
    images = torch.arange(10).repeat(3)
    with pytest.raises(ValueError, match="there are 10 images for batches of 11. Lower per_device_train_batch_size"):
        GlobalOrder(30, seed=0, global_batch_size=11, text_image_index=images)
