"""What every method of the comparison gives: scores of all pairs, and uncertainties that need no gallery."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from modeling_asymvlm.store.embedding_store import EmbeddingSplit


TRUE_AMBIGUITY = "true ambiguity"  # as an uncertainty: what some data tell, and no method knows


@dataclass(frozen=True)
class Predictions:
    """
    What a method says of a split.

    Args:
        scores (`torch.FloatTensor` of shape `(texts, images)`):
            Higher is better; ranks images for a text and texts for an image. Held whole, 4 bytes a pair.
        logit_scale (`float`, *optional*):
            What the method itself multiplies its scores with to get logits of a retrieval posterior. `None` where it
            defines none.
        text_uncertainty (`dict` of name to `torch.Tensor` of shape `(texts,)`): higher is less certain, in any unit.
        image_uncertainty (`dict` of name to `torch.Tensor` of shape `(images,)`): likewise.
        concentration (`torch.Tensor` of shape `(texts,)`, *optional*): kappa, where there is one.
    """

    scores: torch.Tensor
    logit_scale: float | None = None
    text_uncertainty: dict[str, torch.Tensor] = field(default_factory=dict)
    image_uncertainty: dict[str, torch.Tensor] = field(default_factory=dict)
    concentration: torch.Tensor | None = None


class Method(nn.Module):
    """A method of the comparison: a loss to train by, unless it is free of training, and its predictions."""

    def fit(self, splits: dict[str, EmbeddingSplit]) -> None:
        """Takes from `train` and `validation` what it needs besides trained weights, which it has by then."""

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Loss of a batch of matching pairs, as `FeaturePairs` gives it: a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to train.")

    @torch.no_grad()
    def predict(self, split: EmbeddingSplit) -> Predictions:
        """The predictions for a split, in evaluation mode and on the CPU."""
        raise NotImplementedError

    def _device(self) -> torch.device:
        return next(self.parameters()).device


def by_blocks(function: Any, texts: tuple[torch.Tensor, ...], block_size: int) -> torch.Tensor:
    """The rows of `function(*block)` over blocks of texts, gathered on the CPU: memory stays that of a block."""
    blocks = zip(*(tensor.split(block_size) for tensor in texts), strict=True)
    return torch.cat([function(*block).cpu() for block in blocks])


def scores_with_images(method: Method, text_features: torch.Tensor, split: EmbeddingSplit) -> torch.Tensor:
    """The scores of a method for other texts, of raw features `(texts, dim)`, with the images of a split."""
    texts = replace(
        split,
        captions=[""] * len(text_features),
        text_features=text_features,
        text_image_index=torch.zeros(len(text_features), dtype=torch.long),
        columns={},
    )
    return method.predict(texts).scores


def matching_pairs(image_ids: torch.Tensor) -> torch.Tensor:
    """Boolean `(batch, batch)`: which text belongs to which image; captions of one image match it alike."""
    return image_ids[:, None] == image_ids[None, :]
