"""Texts as natural parameters: queries for [`~search.ImageIndex`], captions, prompts, and what is left of them."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..model.modeling_asymvlm import AsymVLMModel
from .tokenization import TokenizedTexts, tokenize_texts


TOO_LONG = ("raise", "truncate")


def encode_texts(
    model: AsymVLMModel,
    processor: Any,
    texts: str | Sequence[str],
    *,
    batch_size: int = 256,
    too_long: str = "raise",
    progress: bool = False,
) -> torch.Tensor:
    """
    Natural parameters eta of texts: the norm is the concentration, the direction the mean direction. A text's do not
    depend, but for rounding, on the others or on the batch size.

    Example:

    ```python
    >>> found = gallery.search(encode_texts(model, processor, ["a red circle", "a picture"]), k=3)
    ```

    Args:
        model (`AsymVLMModel`): with its backbone, in evaluation mode, on any device.
        processor (`ProcessorMixin` or `PreTrainedTokenizerBase`): of the backbone.
        texts (`str` or `Sequence[str]`): one text or several.
        batch_size (`int`, *optional*, defaults to 256): texts in the backbone at a time, which are of like length.
        too_long (`str`, *optional*, defaults to `"raise"`):
            What is done about a text that is longer than the context of the backbone, `config.text_max_length`: it is
            refused, or with `"truncate"` cut to the context, keeping its last token, as the model itself does.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Returns:
        `torch.FloatTensor` of shape `(texts, projection_dim)`, float64 for a model of that dtype, in the order of the
        texts, on the device of the model.

    Raises:
        TypeError: for what is no string.
        ValueError: without any text, for a text that is empty or of white space alone, for one that is longer than the
            context unless it may be cut, for a batch size below 1 and for an unknown `too_long`.
    """
    if too_long not in TOO_LONG:
        raise ValueError(f"Unknown too_long {too_long!r}: choose one of {', '.join(TOO_LONG)}.")
    tokenized = tokenize_texts(processor, texts)
    if too_long == "raise":
        tokenized.check_context(model.config.text_max_length)
    return encode_tokens(model, tokenized, batch_size=batch_size, progress=progress)


@torch.no_grad()
def encode_tokens(
    model: AsymVLMModel, tokenized: TokenizedTexts, *, batch_size: int = 256, progress: bool = False
) -> torch.Tensor:
    """As [`encode_texts`] for texts that are tokenised already; those beyond the context are cut."""
    features = backbone_features(model, tokenized, batch_size=batch_size, progress=progress)
    return model.get_text_features(text_features=features, return_dict=True).pooler_output


@torch.no_grad()
def backbone_features(
    model: AsymVLMModel, tokenized: TokenizedTexts, *, batch_size: int = 256, progress: bool = False
) -> torch.Tensor:
    """
    The backbone's raw text features, which the head and a calibration take, of texts that are tokenised already; those
    beyond the context are cut.

    Returns:
        `torch.FloatTensor` of shape `(texts, projection_dim)`, in the order of the texts, on the device of the model.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
    parts: list[torch.Tensor] = []
    order: list[int] = []
    with tqdm(total=len(tokenized.texts), desc="Encoding", unit=" texts", disable=not progress) as bar:
        for numbers, inputs in tokenized.batches(batch_size):
            on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            parts.append(model.backbone_text_features(**on_device).to(model.logit_scale.device))
            order += numbers
            bar.update(len(numbers))
    return torch.cat(parts)[torch.tensor(order).argsort()]


def text_concentration(
    model: AsymVLMModel,
    processor: Any,
    texts: str | Sequence[str],
    *,
    batch_size: int = 256,
    too_long: str = "truncate",
) -> torch.Tensor:
    """
    The concentration of texts: the norm of what [`encode_texts`] gives.

    Args:
        model, processor, texts, batch_size, too_long: as for [`encode_texts`], but texts that are too long are cut.

    Returns:
        `torch.FloatTensor` of shape `(num_texts,)` on the CPU: kappa >= 0.

    Raises:
        TypeError, ValueError: as [`encode_texts`], and for a deterministic model, whose texts are points.
    """
    model.config.law.check_concentration()
    eta = encode_texts(model, processor, texts, batch_size=batch_size, too_long=too_long)
    return torch.linalg.vector_norm(eta, dim=-1).cpu()
