"""Composing and loading: where a backbone's weights come from, a head beside them, and nothing left random."""

import copy
import inspect
import os
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from .backbone_code import with_loaded_code
from .backbone_quantization import check_not_quantized, hand_quantizer_to_backbone
from .backbones import RemoteCodeConfig, backbone_class, family_of
from .checkpoint_digests import check_digest
from .checkpoint_fingerprints import backbone_fingerprint, check_fingerprint
from .checkpoint_sources import (
    HUB_KWARGS,
    REPOSITORY_KWARGS,
    Place,
    backbone_of_head,
    chosen,
    config_of_repository,
    device_map_of_base,
    hub_kwargs_of_base,
    place_of_code,
)
from .checkpoint_weights import (
    HEAD_PREFIX,
    base_model_commit,
    check_shards,
    damage_is_named,
    load_backbone,
    load_head_weights,
    load_tokenizer,
    raise_on_mismatch,
    weight_files,
    with_prefix,
)
from .configuration_asymvlm import AsymVLMConfig
from .frozen_backbone import FrozenBackboneMixin
from .offloading import computing_device
from .text_head import ProbabilisticTextHead


if TYPE_CHECKING:  # as in frozen_backbone.py
    Mixed = FrozenBackboneMixin
else:
    Mixed = object


class CheckpointLoadingMixin(Mixed):
    """Composing and loading: the backbone comes out frozen and in evaluation mode, and no weight is left random."""

    @classmethod
    def from_vlm_pretrained(
        cls,
        vlm: str | os.PathLike | PreTrainedModel,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str | None = None,
        device_map: str | dict | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        quantization_config: QuantizationConfigMixin | dict | None = None,
        text_pad_token_id: int | None = None,
        **config_kwargs,
    ) -> Self:
        r"""
        Composes a pre-trained backbone with a new head.

        Args:
            vlm (`str`, `os.PathLike` or `PreTrainedModel`):
                A Hub repository, a folder, or a live backbone, whose weights are copied.
            revision (`str`, *optional*): branch, tag or commit of the backbone's repository; its commit is recorded.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Of the backbone; the head is float32 always.
            attn_implementation, device_map, cache_dir, local_files_only, token (*optional*): as for
                `AutoModel.from_pretrained`.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether to run code from the backbone's repository.
            quantization_config (`QuantizationConfigMixin` or `dict`, *optional*):
                Quantises the backbone, as in `AutoModel.from_pretrained`; the head stays in float32. The weights named
                or given must not be quantised yet.
            text_pad_token_id (`int`, *optional*): defaults to that of the backbone's tokenizer where it is needed.
            config_kwargs: the other arguments of [`AsymVLMConfig`].

        Raises:
            ValueError: if the backbone is not an image–text model or quantised already, its texts and images differ in
                width, its weights are incomplete or damaged, it needs code that was not allowed to run, or a value is
                out of range.
            TypeError: for an argument that [`AsymVLMConfig`] does not know.
            OSError: if there is no such repository or folder.
        """
        _check_arguments(vlm, config_kwargs, revision=revision, device_map=device_map)
        placing = {"dtype": dtype, "attn_implementation": attn_implementation, "device_map": device_map}
        hub_kwargs: dict[str, Any] = {
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        base = None if isinstance(vlm, PreTrainedModel) else os.fspath(vlm)
        if isinstance(vlm, PreTrainedModel):
            backbone = _copy_of(vlm, dtype, attn_implementation)
            vlm_config = backbone.config
        else:
            vlm_config = config_of_repository(vlm, hub_kwargs)
            if text_pad_token_id is None and not family_of(vlm_config).reads_text_mask:
                text_pad_token_id = load_tokenizer(vlm, **hub_kwargs).pad_token_id
        check_not_quantized(vlm_config)
        config = AsymVLMConfig(
            vlm_config=vlm_config,
            text_pad_token_id=text_pad_token_id,
            base_model_name_or_path=base,
            base_model_revision=None if base is None else base_model_commit(base, **hub_kwargs),
            **config_kwargs,
        )
        if base is not None:
            places = placing if quantization_config is None else {"dtype": dtype}
            backbone = load_backbone(base, vlm_config, **places, **hub_kwargs)
        model = cls._composed(config, backbone)
        if quantization_config is not None:
            return cls._quantized(model, quantization_config=quantization_config, **placing)
        model.text_head.to(computing_device(backbone))
        return model.eval()

    @classmethod
    def _composed(cls, config: AsymVLMConfig, backbone: PreTrainedModel) -> Self:
        """A backbone with a new head, its fingerprint in `config`. Raises `ValueError` for features of other width."""
        config.backbone_fingerprint, width = backbone_fingerprint(backbone, text_length=config.fixed_text_length)
        if width != config.projection_dim:
            raise ValueError(
                f"The features of {type(backbone).__name__} are {width} wide, but projection_dim is "
                f"{config.projection_dim}: pass projection_dim={width}."
            )
        return cls(config, vlm=backbone)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        r"""
        Loads a checkpoint, whole or head-only; for the latter, the backbone's weights come from
        `config.base_model_name_or_path` at `config.base_model_revision`. Arguments as for
        `PreTrainedModel.from_pretrained`; those that select a repository or a file in it are of the checkpoint's own,
        and `quantization_config` quantises the backbone alone.

        Raises:
            ValueError: if weights are missing, unexpected, of another shape or damaged, in the checkpoint or in the
                backbone, or if the backbone is not the one that the head was trained on.
            OSError: if there is no such repository, folder or file.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        trust_remote_code, code_revision = (kwargs.pop(k, None) for k in ("trust_remote_code", "code_revision"))
        kwargs.pop("ignore_mismatched_sizes", None)  # never: mis-shaped weights are an error
        # "auto" is how to load, and nothing that a configuration could hold; `torch_dtype` is the older name.
        older, dtype = kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None)
        precision = {"dtype": dtype or older} if dtype or older else {}
        place, own = pretrained_model_name_or_path, chosen(kwargs, HUB_KWARGS + REPOSITORY_KWARGS)
        if place is not None and not isinstance(config, PreTrainedConfig):
            source = place if config is None else config
            config, kwargs = AsymVLMConfig.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        config = copy.deepcopy(config)
        kwargs = {k: v for k, v in kwargs.items() if k not in HUB_KWARGS + REPOSITORY_KWARGS} | precision
        head_only = config is not None and config.vlm_config is not None and config.save_backbone is False
        if config is not None and trust_remote_code and isinstance(config.vlm_config, RemoteCodeConfig):
            code_place, code_kwargs = place_of_code(place, own, config, head_only)
            code_kwargs["code_revision"] = code_revision
            config.vlm_config = with_loaded_code(config.vlm_config, code_place, **code_kwargs)
        if place is None or not head_only:
            model, loading_info = cls._load_whole(place, model_args, config, own, kwargs)
        else:
            model, loading_info = cls._load_head_only(place, config, own, kwargs)
        return (model, loading_info) if output_loading_info else model

    @classmethod
    def _load_whole(
        cls, place: Place | None, model_args: tuple, config: Any, own: dict[str, Any], kwargs: dict[str, Any]
    ) -> tuple[Self, dict[str, Any]]:
        """A model and its loading info from a checkpoint that holds all of its weights; `own` selects its files."""
        check_shards(place, own.get("subfolder", ""), own.get("variant"))
        source = f"checkpoint {str(place)!r}"
        kwargs = {**kwargs, **own, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with damage_is_named(source):
            loaded: Any = super().from_pretrained(place, *model_args, config=config, **kwargs)
        model, loading_info = loaded
        raise_on_mismatch(loading_info, source)
        if place is not None:
            own_files = {k: v for k, v in own.items() if k not in ("use_safetensors", "_commit_hash")}
            with damage_is_named(source):
                for file in weight_files(place, **own_files):
                    check_digest(file, source)
        hand_quantizer_to_backbone(model)
        model._freeze_backbone()
        return model, loading_info

    @classmethod
    def _load_head_only(
        cls, place: Place, config: Any, own: dict[str, Any], kwargs: dict[str, Any]
    ) -> tuple[Self, dict[str, Any]]:
        """A model and its loading info from a head-only checkpoint, and the backbone that it names."""
        backbone_class(config.vlm_config)
        own_files = {k: v for k, v in own.items() if k not in ("use_safetensors", "_commit_hash")}
        head = load_head_weights(place, **own_files)
        adapter_kwargs = dict(kwargs.pop("adapter_kwargs", None) or {})
        adapters = adapter_kwargs.pop("_adapter_model_path", None)  # where AutoModel was sent to a PEFT folder
        base_kwargs = {**kwargs, **hub_kwargs_of_base(own, config)}
        model, loading_info = cls._with_backbone(config, head, f"checkpoint {str(place)!r}", base_kwargs)
        if adapters is not None:
            model.load_adapter(adapters, adapter_kwargs=adapter_kwargs)
            model._freeze_backbone()
        model.name_or_path = model.config.name_or_path = os.fspath(place)
        return model, loading_info

    @classmethod
    def _with_backbone(
        cls, config: AsymVLMConfig, head: dict[str, torch.Tensor], source: str, base_kwargs: dict[str, Any]
    ) -> tuple[Self, dict[str, Any]]:
        """A model of a head's weights and the backbone that `config` names, loaded with `base_kwargs`."""
        if base_kwargs.get("dtype") in (None, "auto"):
            base_kwargs["dtype"] = config.dtype or "auto"  # the backbone's when the checkpoint was saved
        if isinstance(base_kwargs.get("attn_implementation"), dict):
            base_kwargs["attn_implementation"] = base_kwargs["attn_implementation"].get("vlm_config")
        quantized = base_kwargs.pop("quantization_config", None)
        placing = {"dtype": base_kwargs["dtype"]}
        if quantized is not None:
            for name in ("device_map", "attn_implementation"):
                placing[name] = base_kwargs.pop(name, None)
        base_kwargs["device_map"] = device_map_of_base(base_kwargs.get("device_map"))
        backbone = backbone_of_head(config, source, base_kwargs)
        with torch.device("meta"):  # nothing is initialised only to be overwritten
            model = cls(config, vlm=backbone)
        loading_info = _assign_weights(model.text_head, head, computing_device(backbone), source)
        model.text_head.eval()
        model.training = False
        model.config.dtype = backbone.dtype
        if config.backbone_fingerprint is not None:
            base, fixed_length = config.base_model_name_or_path, config.fixed_text_length
            check_fingerprint(config.backbone_fingerprint, backbone, f"{base!r}", text_length=fixed_length)
        if quantized is not None:
            model = cls._quantized(model, quantization_config=quantized, **placing)
        return model, loading_info

    @classmethod
    def _quantized(cls, model: Self, **kwargs: Any) -> Self:
        """
        The model with its backbone quantised, which transformers does while it loads weights; of the whole model,
        since it asks for input embeddings, which many dual encoders do not have.
        """
        loaded: Any = super().from_pretrained(
            None, config=model.config, state_dict=model.state_dict(), output_loading_info=True, **kwargs
        )
        quantized, loading_info = loaded
        raise_on_mismatch(loading_info, "the unquantised model")
        quantized.name_or_path = quantized.config.name_or_path = ""
        hand_quantizer_to_backbone(quantized)
        quantized._freeze_backbone()
        return quantized


def _check_arguments(vlm: Any, config_kwargs: dict[str, Any], **of_loading: Any) -> None:
    """Raises `TypeError` or `ValueError` for arguments of `from_vlm_pretrained` that do not go together."""
    known = set(inspect.signature(AsymVLMConfig.__init__).parameters) - {"self", "vlm_config", "kwargs"}
    unknown = sorted(set(config_kwargs) - known)
    if unknown:
        raise TypeError(f"AsymVLMConfig has no argument {', '.join(unknown)}.")
    if not isinstance(vlm, str | os.PathLike | PreTrainedModel):
        raise TypeError(f"vlm must be a name, a folder or a live `PreTrainedModel`, got {type(vlm).__name__}.")
    if isinstance(vlm, PreTrainedModel) and any(value is not None for value in of_loading.values()):
        raise ValueError(
            f"{' and '.join(of_loading)} say how to load a backbone, but a live one was passed: pass its name "
            "instead, or move it before."
        )


def _assign_weights(
    text_head: ProbabilisticTextHead, head: dict[str, torch.Tensor], device: torch.device, source: str
) -> dict[str, Any]:
    """Weights read from `source` become the head's, copied, in float32. Raises `ValueError` for any mismatch."""
    expected = with_prefix(HEAD_PREFIX, text_head.state_dict())
    loading_info: dict[str, Any] = {
        "missing_keys": expected.keys() - head.keys(),
        "unexpected_keys": head.keys() - expected.keys(),
        "mismatched_keys": {k for k in expected.keys() & head.keys() if head[k].shape != expected[k].shape},
        "error_msgs": [],
    }
    raise_on_mismatch(loading_info, source)
    own = {name.removeprefix(HEAD_PREFIX): head[name].to(device, torch.float32, copy=True) for name in head}
    text_head.load_state_dict(own, assign=True)
    return loading_info


def _copy_of(vlm: PreTrainedModel, dtype: str | torch.dtype, attn_implementation: str | None) -> PreTrainedModel:
    """A live backbone's own copy, with the architecture in its configuration. Raises `ValueError` if it is none."""
    own = copy.deepcopy(vlm)
    own.config.architectures = [type(vlm).__name__]
    if not isinstance(vlm, backbone_class(own.config)):
        raise ValueError(
            f"A {type(vlm).__name__} has no joint space of texts and images: pass a "
            f"{backbone_class(own.config).__name__}."
        )
    if dtype != "auto":
        precision: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(precision, torch.dtype):
            raise ValueError(f"dtype must be 'auto' or name a dtype of torch, such as 'bfloat16', got {dtype!r}.")
        own.to(dtype=precision)  # type: ignore[call-arg]
    if attn_implementation is not None:
        own.set_attn_implementation(attn_implementation)
    return own
