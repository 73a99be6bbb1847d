"""Validation and test splits for data that have none: images of the training split."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from .sources import PairSource
from .splits import SPLITS
from .tables import TablePairs


@dataclass(frozen=True)
class HashRange:
    """
    A share of all images, told by a hash of their identity: the same on every machine and in every process.

    Args:
        seed (`int`): another seed draws another share.
        start, end (`float`): the hash, in [0, 1), of the images of this share lies in [start, end).
    """

    seed: int
    start: float
    end: float

    def __contains__(self, image_id: str) -> bool:
        digest = hashlib.blake2b(f"{self.seed} {image_id}".encode(), digest_size=8).digest()
        return self.start <= (int.from_bytes(digest) >> 11) / 2**53 < self.end


class DivisibleSource(PairSource, Protocol):
    """A source that is read from one end to the other and can leave out images by their identity."""

    def within(self, share: HashRange) -> Self:
        """The images of a share only."""
        ...


def with_held_out_splits(
    splits: Mapping[str, TablePairs | DivisibleSource], fraction: float, seed: int
) -> dict[str, Any]:
    """
    Adds what is missing of validation and test, each a `fraction` of the training images drawn by `seed`: exactly so
    many where the images can be counted, and else those whose identity has a hash in a range of that length.

    Raises:
        ValueError: if the training images can be counted and do not suffice for two in every split.
    """
    completed: dict[str, Any] = dict(splits)
    missing = [name for name in SPLITS[1:] if name not in splits]
    train = splits["train"]
    if not missing:
        return completed
    if not isinstance(train, TablePairs):
        for number, name in enumerate(missing):
            completed[name] = train.within(HashRange(seed, number * fraction, (number + 1) * fraction))
        completed["train"] = train.within(HashRange(seed, len(missing) * fraction, 1.0))
        return completed
    num_held_out = max(2, round(fraction * train.num_images))
    if train.num_images - len(missing) * num_held_out < 2:
        raise ValueError(
            f"{train.num_images} training images are too few to hold out {' and '.join(missing)} splits of "
            f"{num_held_out}: bring your own splits, more images, or a smaller held_out_fraction=."
        )
    order = np.random.default_rng(seed).permutation(train.num_images)
    for name in missing:
        completed[name] = train.of_images(np.sort(order[:num_held_out]))
        order = order[num_held_out:]
    completed["train"] = train.of_images(np.sort(order))
    return completed
