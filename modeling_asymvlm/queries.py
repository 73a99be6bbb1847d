"""Words as queries: natural parameters of texts, for [`~retrieval.ImageIndex`]."""

from collections.abc import Sequence
from typing import Any

import torch

from .modeling_asymvlm import AsymVLMModel


@torch.no_grad()
def text_queries(model: AsymVLMModel, processor: Any, texts: str | Sequence[str]) -> torch.Tensor:
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
    empty = [number for number, text in enumerate(texts) if not text.strip()]
    if not texts or empty:
        raise ValueError(f"Query {empty[0] if empty else 0} is empty: ask for something in words.")
    context = model.config.text_max_length
    for text, tokens in zip(texts, processor.tokenizer(texts)["input_ids"], strict=True):
        if context is not None and len(tokens) > context:
            raise ValueError(
                f"The query {text[:40]!r}... has {len(tokens)} tokens, but the context of the backbone is {context}: "
                "shorten it."
            )
    inputs = processor(text=texts, padding=True, return_tensors="pt").to(model.device)
    return model.get_text_features(**inputs).pooler_output
