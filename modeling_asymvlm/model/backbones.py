"""Frozen vision–text backbones: what counts as one, the width of its joint space, and its raw features.

A backbone is any model of `AutoModel` that offers `get_text_features` and `get_image_features` of equal width. What a
family needs beyond that, or why it cannot serve, is declared in one place: [`FAMILIES`].
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import MODEL_MAPPING, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling


FEATURE_METHODS = ("get_text_features", "get_image_features")
CAPTURE = ("output_attentions", "output_hidden_states")  # what every method takes by name or among its keywords


class RemoteCodeConfig(PreTrainedConfig):
    """
    Stands for the configuration of a backbone whose code lies in a repository, until the user allows that code to run.

    Args:
        code_model_type (`str`, *optional*): the `model_type` that the code defines.
        kwargs: the fields of the configuration, `auto_map` among them.
    """

    model_type = "remote-code"

    def __init__(self, code_model_type: str | None = None, **kwargs: Any):
        self.code_model_type = code_model_type
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as the code's own class would write it."""
        values = super().to_dict()
        values["model_type"] = values.pop("code_model_type")
        return values


@dataclass(frozen=True)
class BackboneFamily:
    """
    What sets a family of backbones apart from CLIP, whose ways are the defaults.

    Args:
        reads_text_mask (`bool`): `False` for families trained on texts padded to the full context without an attention
            mask, and pooled at the last position: the padding is part of the input.
        dim_attribute (`str`, *optional*): where the configuration keeps the width of the joint embedding space.
        pooled_position (`int`, *optional*): where the family's pooled output is a sequence, the position that its
            contrastive objective was trained on.
        takes_patches (`bool`): whether pixels come as a sequence of patches with a mask and their grid.
        architecture (`str`, *optional*): the class of transformers that holds the contrastive projections, for
            families whose `AutoModel` lacks them; only checkpoints of this architecture are taken.
        text_features, image_features (*optional*): the model's output, with raw features `(batch, dim)` as
            `pooler_output`, given the model and its inputs, for architectures whose own `get_*_features` are missing
            or do not serve.
        refusal (`str`, *optional*): why no checkpoint, or no checkpoint of another architecture, can serve.
    """

    reads_text_mask: bool = True
    dim_attribute: str | None = None
    pooled_position: int | None = None
    takes_patches: bool = False
    architecture: str | None = None
    text_features: Callable[..., Any] | None = None
    image_features: Callable[..., Any] | None = None
    refusal: str | None = None


def _aimv2_text_features(
    vlm: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **capture: Any
) -> Any:
    # The tower is causal, but transformers leaves its causal mask out of batches without padding under sdpa, so that a
    # text alone and in a batch would differ: the mask is made here.
    allowed = torch.ones(2 * input_ids.shape[1:], dtype=torch.bool, device=input_ids.device).tril()[None, None]
    if attention_mask is not None:
        allowed = allowed & (attention_mask[:, None, None] != 0)
    additive = torch.zeros(allowed.shape, dtype=vlm.dtype, device=input_ids.device)
    additive = additive.masked_fill(~allowed, torch.finfo(vlm.dtype).min).expand(input_ids.shape[0], -1, -1, -1)
    return vlm.get_text_features(input_ids=input_ids, attention_mask=additive, return_dict=True, **capture)


def _blip_text_features(
    vlm: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **capture: Any
) -> Any:
    output = vlm.text_encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **capture)
    output.pooler_output = vlm.text_proj(output.last_hidden_state[:, 0])
    return output


def _blip_image_features(
    vlm: Any, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **capture: Any
) -> Any:
    output = vlm.vision_model(
        pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **capture
    )
    output.pooler_output = vlm.vision_proj(output.last_hidden_state[:, 0])
    return output


FAMILIES = {
    "siglip": BackboneFamily(reads_text_mask=False),
    "siglip2": BackboneFamily(reads_text_mask=False, takes_patches=True),
    "aimv2": BackboneFamily(text_features=_aimv2_text_features),
    "flava": BackboneFamily(pooled_position=0),
    "blip": BackboneFamily(
        dim_attribute="image_text_hidden_size",
        architecture="BlipForImageTextRetrieval",
        text_features=_blip_text_features,
        image_features=_blip_image_features,
        refusal="public BLIP checkpoints do not hold the projections of BlipModel, so its features would be random; "
        "take a checkpoint of BlipForImageTextRetrieval, such as Salesforce/blip-itm-base-coco",
    ),
    "blip-2": BackboneFamily(
        refusal="its retrieval head compares a text with the best of an image's 32 query vectors, so an image is not "
        "one point, and Blip2Model has no pooled text features"
    ),
    "asymvlm": BackboneFamily(
        refusal="it holds a head already; load it with AutoModel, or pass the backbone that it was made from"
    ),
}


def family_of(vlm_config: PreTrainedConfig) -> BackboneFamily:
    """The declaration of the backbone's family; CLIP's ways for a family that none is declared for."""
    return FAMILIES.get(vlm_config.model_type, BackboneFamily())


def backbone_class(vlm_config: PreTrainedConfig) -> Any:
    """
    The class that holds a backbone of this configuration: `AutoModel`'s, unless its family names another.

    Raises:
        ValueError: with the reason, if no model of this configuration can be a backbone. Loads no weights.
    """
    family, name = family_of(vlm_config), vlm_config.model_type
    if isinstance(vlm_config, RemoteCodeConfig):
        raise ValueError(
            f"Backbone {vlm_config.code_model_type!r} is no part of transformers; its code lies in a repository "
            f"({vlm_config.auto_map.get('AutoModel', 'no class of AutoModel')}). Read that code, and pass "
            "trust_remote_code=True to from_pretrained to run it."
        )
    if family.architecture is not None and family.architecture in (vlm_config.architectures or ()):
        return getattr(transformers, family.architecture)
    if family.refusal is not None:
        raise ValueError(f"Backbone {name!r} is not supported: {family.refusal}.")
    model_class: Any = MODEL_MAPPING.get(type(vlm_config), None)
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    missing = [method for method in FEATURE_METHODS if not hasattr(model_class, method)]
    if missing:
        raise ValueError(
            f"{name!r} is not an image–text model: AutoModel gives {getattr(model_class, '__name__', 'no class')} for "
            f"it, which lacks {' and '.join(missing)}. Choose a dual encoder such as CLIP or SigLIP."
        )
    return model_class


def embedding_dim(vlm_config: PreTrainedConfig) -> int:
    """
    Width of the backbone's joint embedding space as its configuration states it: where its family declares, else
    `projection_dim`, else the text tower's `projection_size`, else a `hidden_size`. Raises `ValueError` if none is
    there.
    """
    text_config = getattr(vlm_config, "text_config", None)
    declared = family_of(vlm_config).dim_attribute
    for config, name in (
        *([] if declared is None else [(vlm_config, declared)]),
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


def text_features_of(vlm: Any, **inputs: torch.Tensor | None) -> torch.Tensor:
    """Raw (unnormalised) text features `(batch, dim)` of a backbone: those of [`text_output_of`]."""
    return text_output_of(vlm, **inputs).pooler_output


def image_features_of(vlm: Any, pixel_values: torch.Tensor, **inputs: torch.Tensor | bool | None) -> torch.Tensor:
    """Raw image features `(batch, dim)` of a backbone: those of [`image_output_of`]."""
    return image_output_of(vlm, pixel_values, **inputs).pooler_output


def text_output_of(vlm: Any, **inputs: Any) -> Any:
    """
    What a backbone makes of texts, without gradients, as `BaseModelOutputWithPooling`: its raw (unnormalised) features
    `(batch, dim)` as `pooler_output`, its `last_hidden_state` and, with `output_hidden_states` and
    `output_attentions`, those. Inputs that the backbone does not take, such as the `token_type_ids` that some
    tokenizers always give, are left out.

    Raises:
        ValueError: if it gives no pooled features, or a sequence of them.
    """
    family = family_of(vlm.config)
    return _output(vlm, family.text_features, "get_text_features", family.pooled_position, inputs)


def image_output_of(vlm: Any, pixel_values: torch.Tensor, **inputs: Any) -> Any:
    """What a backbone makes of images, as [`text_output_of`]; pixels take the backbone's dtype."""
    family = family_of(vlm.config)
    pixels = {"pixel_values": pixel_values.to(vlm.dtype)}
    return _output(vlm, family.image_features, "get_image_features", family.pooled_position, {**pixels, **inputs})


def _output(
    vlm: Any, declared: Callable | None, method: str, pooled_position: int | None, inputs: dict[str, Any]
) -> Any:
    function = getattr(vlm, method) if declared is None else declared
    taken = inspect.signature(function).parameters
    names = {name for name in inputs if name in taken}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        names |= {"attention_mask", *CAPTURE} if names else set(inputs)
    inputs = {name: value for name, value in inputs.items() if value is not None and name in names}
    with torch.no_grad():
        output = function(**inputs) if declared is None else declared(vlm, **inputs)
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    if pooled_position is not None and features is not None and features.ndim == 3:
        features = features[:, pooled_position]
    if features is None or features.ndim != 2:
        found = "nothing" if features is None else f"a tensor of shape {tuple(features.shape)}"
        raise ValueError(
            f"{type(vlm).__name__}.{method} must give one vector per sample, shape (batch, dim), but gave {found}."
        )
    captured = ("last_hidden_state", "hidden_states", "attentions")
    return BaseModelOutputWithPooling(
        pooler_output=features, **{name: getattr(output, name, None) for name in captured}
    )
