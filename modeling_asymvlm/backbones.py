"""Frozen vision–text backbones: what counts as one, its raw features, and how it wants its texts.

A backbone is any model of `AutoModel` that offers `get_text_features` and `get_image_features` of equal width. What a
family needs beyond that is declared here in one place: `FAMILIES_WITHOUT_TEXT_MASK` and `REFUSED_FAMILIES`.
"""

from typing import Any

import torch
from transformers import MODEL_MAPPING, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Trained on texts padded to the full context without an attention mask, and pooled at the last position: the padding
# is part of the input, so every text must be padded alike or its embedding moves.
FAMILIES_WITHOUT_TEXT_MASK = ("siglip", "siglip2")

REFUSED_FAMILIES = {
    "asymvlm": "it holds a head already; load it with AutoModel, or pass the backbone that it was made from",
    "blip": "public BLIP checkpoints do not hold the projections of BlipModel, so its features would be random",
    "blip-2": "Blip2Model has no pooled text features, so it is not a dual encoder",
}


def check_backbone_config(vlm_config: PreTrainedConfig) -> None:
    """
    Raises `ValueError` with the reason if no model of this configuration can be a backbone. Loads no weights.
    """
    if vlm_config.model_type in REFUSED_FAMILIES:
        raise ValueError(
            f"Backbone family {vlm_config.model_type!r} is not supported: {REFUSED_FAMILIES[vlm_config.model_type]}."
        )
    model_class: Any = MODEL_MAPPING.get(type(vlm_config), None)
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    missing = [name for name in ("get_text_features", "get_image_features") if not hasattr(model_class, name)]
    if missing:
        raise ValueError(
            f"{vlm_config.model_type!r} is not an image–text model: AutoModel gives "
            f"{getattr(model_class, '__name__', 'no class')} for it, which lacks {' and '.join(missing)}. "
            "Choose a dual encoder such as CLIP or SigLIP."
        )


def embedding_dim(vlm_config: PreTrainedConfig) -> int:
    """
    Width of the backbone's joint embedding space as its configuration states it: `projection_dim`, else the text
    tower's `projection_size`, else a `hidden_size`. Raises `ValueError` if none is there.
    """
    text_config = getattr(vlm_config, "text_config", None)
    for config, name in (
        (vlm_config, "projection_dim"),
        (text_config, "projection_size"),
        (text_config, "hidden_size"),
        (vlm_config, "hidden_size"),
    ):
        width = getattr(config, name, None)
        if isinstance(width, int):
            return width
    raise ValueError(
        f"The configuration of backbone {vlm_config.model_type!r} does not state the width of its embeddings: pass "
        "projection_dim."
    )


def text_context_length(vlm_config: PreTrainedConfig) -> int | None:
    """Number of token positions of the backbone's text tower, or `None` where its configuration does not state it."""
    return getattr(getattr(vlm_config, "text_config", None), "max_position_embeddings", None)


def uses_text_mask(vlm_config: PreTrainedConfig) -> bool:
    """Whether the backbone reads the attention mask of a text, or wants every text padded to the full context."""
    return vlm_config.model_type not in FAMILIES_WITHOUT_TEXT_MASK


def prepare_text(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    token_type_ids: torch.Tensor | None = None,
    *,
    max_length: int | None,
    pad_token_id: int | None,
    use_attention_mask: bool,
) -> dict[str, torch.Tensor | None]:
    """
    Brings tokenised texts into the form the backbone was trained on, so that a text gives the same features however
    the caller padded it.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, length)`): token ids.
        attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): 0 at padding, on either side.
        token_type_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): segment ids.
        max_length (`int`, *optional*): context length; longer texts are cut, keeping their last token (the
            end-of-text token, where CLIP pools), with one warning.
        pad_token_id (`int`, *optional*): what the tokenizer pads with.
        use_attention_mask (`bool`): if `False`, texts are padded on the right to `max_length` and the mask is dropped.

    Returns:
        `dict` of `input_ids`, `attention_mask` and `token_type_ids` for the backbone.

    Raises:
        ValueError: if padding is needed and `pad_token_id` or `max_length` is unknown, or if texts without a mask are
            longer than the context.
    """
    if attention_mask is not None:
        length = input_ids.shape[1]
        positions = torch.arange(length, device=input_ids.device)
        # Real tokens first, in their order; distinct keys, since ONNX has no stable sort.
        order = torch.where(attention_mask == 0, positions + length, positions).argsort(dim=1)
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        token_type_ids = None if token_type_ids is None else token_type_ids.gather(1, order)
    if max_length is not None and input_ids.shape[1] > max_length:
        if attention_mask is None:
            raise ValueError(
                f"The texts have {input_ids.shape[1]} tokens, the backbone's context {max_length}: pass "
                "attention_mask, which tells where each text ends, or let the tokenizer truncate."
            )
        input_ids = _truncated(input_ids, attention_mask, max_length)
        attention_mask = attention_mask[:, :max_length]
        token_type_ids = None if token_type_ids is None else token_type_ids[:, :max_length]
    if not use_attention_mask:
        input_ids, attention_mask = _padded(input_ids, attention_mask, max_length, pad_token_id), None
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


def _padded(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, max_length: int | None, pad_token_id: int | None
) -> torch.Tensor:
    if max_length is None:
        raise ValueError("This backbone wants texts padded to its context: set text_max_length in the configuration.")
    if attention_mask is None and input_ids.shape[1] == max_length:
        return input_ids
    if pad_token_id is None:
        raise ValueError(
            "This backbone wants texts padded to its context, and its padding token is unknown: set "
            "text_pad_token_id in the configuration to the tokenizer's pad_token_id."
        )
    if attention_mask is not None:
        input_ids = input_ids.masked_fill(attention_mask == 0, pad_token_id)
    return torch.nn.functional.pad(input_ids, (0, max_length - input_ids.shape[1]), value=pad_token_id)


def _truncated(input_ids: torch.Tensor, attention_mask: torch.Tensor, max_length: int) -> torch.Tensor:
    lengths = attention_mask.sum(dim=1).to(input_ids.dtype)
    last_token = input_ids.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
    truncated = input_ids[:, :max_length].clone()
    truncated[:, -1] = torch.where(lengths > max_length, last_token, truncated[:, -1])
    if not torch.compiler.is_compiling():  # a log message would split the graph
        logger.warning_once(
            f"Texts of up to {input_ids.shape[1]} tokens are truncated to the backbone's context of {max_length} "
            "tokens. This warning is given once."
        )
    return truncated


def text_features_of(vlm: Any, **inputs: torch.Tensor | None) -> torch.Tensor:
    """
    Raw (unnormalised) text features `(batch, dim)` of a backbone, without gradients.

    Raises:
        ValueError: if its `get_text_features` gives no pooled features, or a sequence of them.
    """
    with torch.no_grad():
        output = vlm.get_text_features(**{name: value for name, value in inputs.items() if value is not None})
    return _pooled(output, f"{type(vlm).__name__}.get_text_features")


def image_features_of(vlm: Any, pixel_values: torch.Tensor, **inputs: torch.Tensor | bool | None) -> torch.Tensor:
    """Raw image features `(batch, dim)` of a backbone, as [`text_features_of`]; pixels take the backbone's dtype."""
    with torch.no_grad():
        output = vlm.get_image_features(
            pixel_values=pixel_values.to(vlm.dtype),
            **{name: value for name, value in inputs.items() if value is not None},
        )
    return _pooled(output, f"{type(vlm).__name__}.get_image_features")


def _pooled(output: BaseModelOutputWithPooling | torch.Tensor, source: str) -> torch.Tensor:
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    if features is None or features.ndim != 2:
        found = "nothing" if features is None else f"a tensor of shape {tuple(features.shape)}"
        raise ValueError(f"{source} must give one vector per sample, shape (batch, dim), but gave {found}.")
    return features
