"""The reference corpus: a sample of the training pairs as a head sees them, to compare texts and images with."""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F

from ..model.modeling_asymvlm import AsymVLMModel


MAX_IMAGES, MAX_TEXTS = 8192, 8192
ROWS_IN_HEAD = 4096


@dataclass(frozen=True)
class ReferenceCorpus:
    """
    Training captions and images under one head. Both are rounded to half precision, in which they are kept on disk:
    whatever is fitted, is fitted with the rounded values.

    Attributes:
        text_embeds (`torch.FloatTensor` of shape `(texts, dim)`): natural parameters of the captions.
        image_embeds (`torch.FloatTensor` of shape `(images, dim)`): unit vectors.
        text_image_index (`torch.LongTensor` of shape `(texts,)`): the image of each caption.
    """

    text_embeds: torch.Tensor
    image_embeds: torch.Tensor
    text_image_index: torch.Tensor

    @classmethod
    def sample(
        cls,
        model: AsymVLMModel,
        split: Any,
        *,
        max_texts: int = MAX_TEXTS,
        max_images: int = MAX_IMAGES,
        seed: int = 0,
    ) -> tuple[Self, torch.Tensor]:
        """
        Args:
            model (`AsymVLMModel`): in evaluation mode, on any device.
            split (`EmbeddingSplit`): the training pairs.
            max_texts, max_images (`int`, *optional*, default to 8192): sizes of the sample at most.
            seed (`int`, *optional*, defaults to 0): the same seed draws the same sample.

        Returns:
            The corpus, and the rows of its captions in the split, `(texts,)`.
        """
        generator = torch.Generator().manual_seed(seed)
        index = torch.as_tensor(split.text_image_index)
        with_caption = index.unique()
        images = with_caption[torch.randperm(len(with_caption), generator=generator)[:max_images]].sort().values
        position = torch.full((int(index.max()) + 1,), -1)
        position[images] = torch.arange(len(images))
        candidates = (position[index] >= 0).nonzero().flatten()
        rows = candidates[torch.randperm(len(candidates), generator=generator)[:max_texts]].sort().values
        corpus = cls(
            rounded(text_embeds_of(model, split.text_features, rows)),
            rounded(F.normalize(split.image_features[images].float(), dim=-1)),
            position[index[rows]],
        )
        return corpus, rows


def rounded(values: torch.Tensor) -> torch.Tensor:
    """Values as half precision keeps them, in float32."""
    return values.half().float()


@torch.no_grad()
def text_embeds_of(model: AsymVLMModel, text_features: Any, rows: torch.Tensor | None = None) -> torch.Tensor:
    """
    Natural parameters of cached text features.

    Args:
        model (`AsymVLMModel`): in evaluation mode, on any device.
        text_features (`torch.Tensor` or `FeatureMatrix` of shape `(captions, dim)`): the backbone's.
        rows (`torch.LongTensor`, *optional*): which of them; by default all.

    Returns:
        `torch.FloatTensor` of shape `(rows, dim)` on the CPU.
    """
    rows = torch.arange(len(text_features)) if rows is None else rows
    parts = [
        model.get_text_features(text_features=text_features[some].to(model.device), return_dict=True)
        .pooler_output.float()
        .cpu()
        for some in rows.split(ROWS_IN_HEAD)
    ]
    return torch.cat(parts) if parts else torch.empty(0, text_features.shape[1])
