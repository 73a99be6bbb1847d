"""Words as queries: natural parameters of texts, for [`~retrieval.ImageIndex`]."""

from collections.abc import Sequence
from typing import Any

import torch

from ..model.modeling_asymvlm import AsymVLMModel
from ..utils.checks import check_strings


@torch.no_grad()
def encode_texts(model: AsymVLMModel, processor: Any, texts: str | Sequence[str]) -> torch.Tensor:
    """
    Natural parameters of texts.

    Args:
        model (`AsymVLMModel`): with its backbone, in evaluation mode.
        processor (`ProcessorMixin`): the backbone's.
        texts (`str` or `Sequence[str]`): the queries.

    Returns:
        `torch.FloatTensor` of shape `(texts, projection_dim)`, on the device of the model.

    Raises:
        ValueError: without any text, for a text of white space alone, and for one that is longer than the context of
            the backbone, of which the end would be lost.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise ValueError("Query 0 is empty: write something in words.")
    check_texts(texts, processor, model.config.text_max_length, kind="query")
    inputs = processor(text=texts, padding=True, return_tensors="pt").to(model.device)
    return model.get_text_features(**inputs).pooler_output


def check_texts(texts: Sequence[str], processor: Any, context: int | None, *, kind: str = "text") -> None:
    """
    Refuses texts that say nothing, and texts of which a backbone would cut off the end.

    Args:
        texts (`Sequence[str]`): what was typed.
        processor (`ProcessorMixin` or `PreTrainedTokenizerBase`): of the backbone.
        context (`int`, *optional*): tokens that the backbone takes at most, `config.text_max_length`.
        kind (`str`, *optional*, defaults to `"text"`): what the messages call a text.

    Raises:
        TypeError: for what is no string.
        ValueError: for a text of white space alone, and for one that is longer than the context.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    check_strings(texts, kind.capitalize())
    for number, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"{kind.capitalize()} {number} is empty: write something in words.")
        if context is not None and (length := len(tokenizer(text)["input_ids"])) > context:
            raise ValueError(
                f"The {kind} {text[:40]!r}... has {length} tokens, but the context of the backbone is {context}: "
                "shorten it."
            )


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
    model.config.law.check_concentration()
    parts = []
    for start in range(0, len(texts), batch_size):
        inputs = processor(text=list(texts[start : start + batch_size]), padding=True, return_tensors="pt")
        parts.append(model(**inputs.to(model.device)).concentration.cpu())
    return torch.cat(parts)
