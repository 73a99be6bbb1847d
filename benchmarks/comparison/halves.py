"""Random halves of a small store: one to train and choose on, the other to test, as often as asked."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from modeling_asymvlm.store.embedding_store import EmbeddingSplit


VALIDATION_SHARE = 0.25  # of the first half


def halves(splits: Mapping[str, EmbeddingSplit], seed: int) -> dict[str, EmbeddingSplit]:
    """
    All images of a store, with their captions, in a random half `test` and another, of which a quarter is
    `validation` and the rest `train`.

    Args:
        splits (`Mapping[str, EmbeddingSplit]`): all the splits of a store.
        seed (`int`): of the halves.
    """
    whole = together(list(splits.values()))
    order = np.random.default_rng(seed).permutation(len(whole.image_ids))
    first, test = order[: len(order) // 2], order[len(order) // 2 :]
    validation = first[: round(VALIDATION_SHARE * len(first))]
    rows = {"train": first[len(validation) :], "validation": validation, "test": test}
    return {name: with_images(whole, np.sort(own)) for name, own in rows.items()}


def together(splits: list[EmbeddingSplit]) -> EmbeddingSplit:
    """Splits as one, in memory, with the columns that all of them have."""
    starts = np.cumsum([0, *(len(split.image_ids) for split in splits)])
    shared = set.intersection(*(set(split.columns) for split in splits))
    return EmbeddingSplit(
        image_ids=[image for split in splits for image in split.image_ids],
        image_features=torch.cat([split.image_features[:] for split in splits]),
        captions=[caption for split in splits for caption in split.captions],
        text_features=torch.cat([split.text_features[:] for split in splits]),
        text_image_index=torch.cat(
            [split.text_image_index + int(start) for split, start in zip(splits, starts[:-1], strict=True)]
        ),
        columns={name: np.concatenate([split.columns[name] for split in splits]) for name in sorted(shared)},
    )


def with_images(split: EmbeddingSplit, images: np.ndarray) -> EmbeddingSplit:
    """The images of these ascending rows, with all their captions."""
    index = np.asarray(split.text_image_index)
    position = np.full(len(split.image_ids), -1)
    position[images] = np.arange(len(images))
    rows = np.flatnonzero(position[index] >= 0)
    return replace(
        split,
        image_ids=[split.image_ids[row] for row in images.tolist()],
        image_features=split.image_features[torch.from_numpy(images)],
        captions=[split.captions[row] for row in rows.tolist()],
        text_features=split.text_features[torch.from_numpy(rows)],
        text_image_index=torch.from_numpy(position[index[rows]]),
        columns={name: values[rows] for name, values in split.columns.items()},
    )
