"""Batches of cached features for training."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from .data import EmbeddingSplit


class FeaturePairs(Dataset):
    """
    The pairs of a split, one per caption, as `AsymVLMModel.forward` takes them. A batch is read at once: pass
    `collate_fn=FeaturePairs.collate` to the `DataLoader`.
    """

    def __init__(self, split: EmbeddingSplit):
        self.split = split

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
