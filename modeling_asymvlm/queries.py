"""Words as queries: natural parameters of texts, for [`~retrieval.ImageIndex`]."""

from collections.abc import Sequence
from typing import Any

import torch

from .modeling_asymvlm import AsymVLMModel
from .text_checks import check_texts


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
    if not texts:
        raise ValueError("Query 0 is empty: write something in words.")
    check_texts(texts, processor, model.config.text_max_length, kind="query")
    inputs = processor(text=texts, padding=True, return_tensors="pt").to(model.device)
    return model.get_text_features(**inputs).pooler_output
