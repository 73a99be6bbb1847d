"""How a backbone wants its texts: padding, attention mask, truncation and length, which a checkpoint keeps."""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Towers after RoBERTa count positions from the padding token's id on, so that the first `pad_token_id + 1` rows of
# their position table are never used.
TOWERS_WITH_POSITION_OFFSET = (
    "altclip_text_model",
    "camembert",
    "clap_text_model",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "markuplm",
    "mluke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


def text_context_length(vlm_config: PreTrainedConfig) -> int | None:
    """Tokens that the backbone's text tower takes at most, or `None` where its configuration does not state it."""
    text_config: Any = getattr(vlm_config, "text_config", None)
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and getattr(text_config, "model_type", None) in TOWERS_WITH_POSITION_OFFSET:
        positions -= text_config.pad_token_id + 1
    return positions


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
        ValueError: if padding is needed and `pad_token_id` or `max_length` is unknown, or if texts longer than the
            context come without the mask that a backbone with masks needs to tell where each ends.
    """
    if attention_mask is None and not use_attention_mask and pad_token_id is not None:
        attention_mask = _mask_without_padding(input_ids, pad_token_id, max_length)
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
        token_type_ids = None
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


def _mask_without_padding(input_ids: torch.Tensor, pad_token_id: int, max_length: int | None) -> torch.Tensor:
    """
    1 up to the last token that is not padding; in texts that must be cut, up to the first padding token, since
    SigLIP's tokenizer pads with its end-of-text token and leaves no other sign of it.
    """
    real = (input_ids != pad_token_id).int().flip(1).cummax(dim=1).values.flip(1)
    too_long = real.sum(dim=1, keepdim=True) > (input_ids.shape[1] if max_length is None else max_length)
    with_end = torch.cat([torch.ones_like(real[:, :1]), real[:, :-1]], dim=1)
    return torch.where(too_long, with_end, real)


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
