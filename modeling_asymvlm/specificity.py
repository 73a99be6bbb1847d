"""Whether a model's uncertainty follows the specificity of texts: hierarchies of captions, and words taken away."""

from collections.abc import Sequence
from typing import Any

import torch

from .evaluation import Hierarchies, remove_words, specificity_correlation, word_removal_metrics
from .modeling_asymvlm import AsymVLMModel


@torch.no_grad()
def text_concentration(
    model: AsymVLMModel, processor: Any, texts: Sequence[str], *, batch_size: int = 256
) -> torch.Tensor:
    """
    The concentration of texts.

    Args:
        model (`AsymVLMModel`): with its backbone, in evaluation mode, on any device.
        processor (`ProcessorMixin` or `PreTrainedTokenizerBase`): of the backbone.
        texts (`Sequence[str]`): any number of them.
        batch_size (`int`, *optional*, defaults to 256): texts at a time.

    Returns:
        `torch.FloatTensor` of shape `(num_texts,)` on the CPU: kappa >= 0.

    Raises:
        ValueError: for a deterministic model, whose texts are points.
    """
    if model.config.distribution == "deterministic":
        raise ValueError("A model with distribution='deterministic' has no concentration.")
    parts = []
    for start in range(0, len(texts), batch_size):
        inputs = processor(text=list(texts[start : start + batch_size]), padding=True, return_tensors="pt")
        parts.append(model(**inputs.to(model.device)).concentration.cpu())
    return torch.cat(parts)


def evaluate_hierarchies(
    model: AsymVLMModel, processor: Any, hierarchies: Hierarchies, *, batch_size: int = 256
) -> dict[str, float]:
    """
    Whether concentration rises from general to specific captions; see [`~evaluation.specificity_correlation`].

    Args:
        model, processor, batch_size: as for [`text_concentration`].
        hierarchies (`Hierarchies`): of [`~evaluation.read_hierarchies`].
    """
    concentration = text_concentration(model, processor, hierarchies.captions, batch_size=batch_size)
    return specificity_correlation(concentration, hierarchies.level, hierarchies.group)


def evaluate_word_removal(
    model: AsymVLMModel,
    processor: Any,
    captions: Sequence[str],
    *,
    mask: str | None = None,
    kept_shares: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, float]:
    """
    Whether uncertainty rises as the words of captions go; see [`~evaluation.word_removal_metrics`].

    Args:
        model, processor, batch_size: as for [`text_concentration`].
        captions (`Sequence[str]`): any captions.
        mask (`str`, *optional*): what to put in place of a word; by default words are deleted.
        kept_shares, seed: as for [`~evaluation.remove_words`].
    """
    shortened = remove_words(captions, kept_shares=kept_shares, mask=mask, seed=seed)
    concentration = text_concentration(model, processor, shortened.captions, batch_size=batch_size)
    return word_removal_metrics(1 / concentration, shortened.kept, shortened.group)
