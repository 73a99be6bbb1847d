"""Batches of cached features for training: what a batch reads, and in which order."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from ..store.embedding_store import EmbeddingSplit


class FeaturePairs(Dataset):
    """
    The pairs of a split, one per caption, as `AsymVLMModel.forward` takes them. A batch is read at once: pass
    `collate_fn=FeaturePairs.collate` to the `DataLoader`.
    """

    def __init__(self, split: EmbeddingSplit):
        self.split = split

    @property
    def text_image_index(self) -> torch.Tensor:
        """The image of each pair, `(pairs,)`."""
        return self.split.text_image_index

    def __len__(self) -> int:
        return len(self.split.text_image_index)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(indices)
        image_rows = self.split.text_image_index[rows]
        return {
            "text_features": self.split.text_features[rows],  # (batch, dim)
            "image_features": self.split.image_features[image_rows],  # (batch, dim)
            "image_ids": image_rows,  # (batch,)
        }

    @staticmethod
    def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch as `__getitems__` read it."""
        return batch


class GlobalOrder(Sampler[int]):
    """
    The order of all pairs in an epoch, a function of the seed and the epoch alone, so that it is the same for any
    number of processes and after resuming. Consecutive blocks of `global_batch_size` are the batches of all processes
    together.

    Args:
        num_pairs (`int`): how many pairs there are.
        seed (`int`): of all epochs.
        global_batch_size (`int`, *optional*): pairs in a batch, over all processes; needed with `text_image_index`.
        text_image_index (`torch.Tensor` of shape `(num_pairs,)`, *optional*):
            The image of each pair. If given, no batch holds an image twice: a pair whose image is in the batch already
            waits for the next one, and what does not fill a batch at the end of the epoch is left out. Every epoch has
            as many batches as the first; where one is short of that, pairs are drawn again.

    Raises:
        ValueError: if there are fewer images than pairs in a batch.
    """

    def __init__(
        self,
        num_pairs: int,
        *,
        seed: int,
        global_batch_size: int | None = None,
        text_image_index: torch.Tensor | None = None,
    ):
        self.num_pairs = num_pairs
        self.seed = seed
        self.epoch = 0
        self.global_batch_size = global_batch_size
        self.images = None if text_image_index is None else np.asarray(text_image_index)
        if self.images is not None:
            num_images = len(np.unique(self.images))
            if global_batch_size is None or num_images < global_batch_size:
                raise ValueError(
                    f"one_caption_per_image needs at least as many images as a batch has pairs over all processes, "
                    f"but there are {num_images} images for batches of {global_batch_size}. Lower "
                    "per_device_train_batch_size."
                )
            self.length = len(self._batches_of_distinct_images(np.random.default_rng((seed, 0))))
        else:
            self.length = num_pairs

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        if self.images is None:
            order = generator.permutation(self.num_pairs)
        else:
            order = self._batches_of_distinct_images(generator)[: self.length]
            while len(order) < self.length:
                order = np.concatenate([order, self._pairs_of_distinct_images(generator)])
        for start in range(0, len(order), 65_536):  # Python numbers for a part at a time
            yield from order[start : start + 65_536].tolist()

    def _pairs_of_distinct_images(self, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        assert self.images is not None
        shuffled = generator.permutation(self.num_pairs)
        first = np.unique(self.images[shuffled], return_index=True)[1]
        return shuffled[generator.choice(first, self.global_batch_size, replace=False)]

    def _batches_of_distinct_images(self, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        assert self.images is not None and self.global_batch_size is not None
        stream = _captions_in_rounds(self.images, generator)
        batches: list[npt.NDArray[np.int64]] = []
        waiting = np.empty(0, dtype=np.int64)
        position = 0
        while True:
            pool = waiting
            while True:
                _, first = np.unique(self.images[pool], return_index=True)
                missing = self.global_batch_size - len(first)
                if missing <= 0 or position == len(stream):
                    break
                pool = np.concatenate([pool, stream[position : position + missing]])
                position = min(position + missing, len(stream))
            if missing > 0:
                return np.concatenate(batches)
            chosen = np.sort(first)[: self.global_batch_size]
            batches.append(pool[chosen])
            waiting = np.delete(pool, chosen)


def _captions_in_rounds(images: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """All pairs in random order, cut into as many rounds as an image has pairs at most, each image once in a round."""
    shuffled = generator.permutation(len(images))
    by_image = shuffled[np.argsort(images[shuffled], kind="stable")]
    counts = np.unique(images, return_counts=True)[1]
    place = np.arange(len(images)) - np.repeat(np.cumsum(counts) - counts, counts)
    # An image with fewer pairs than there are rounds gets rounds as far apart as can be, from a random one on.
    start = np.repeat(generator.random(len(counts)), counts)
    rounds = np.floor((place + start) * (counts.max() / np.repeat(counts, counts))).astype(np.int64)
    return by_image[np.lexsort((generator.random(len(images)), rounds))]
