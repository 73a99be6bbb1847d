"""Composing and loading: where a backbone's weights come from, a head beside them, and nothing left random."""

import copy
import inspect
import os
from typing import Any, Self

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from .backbone_code import class_references, is_remote_code, refers_to_hub, with_loaded_code
from .backbone_quantization import check_not_quantized, hand_quantizer_to_backbone
from .backbones import RemoteCodeConfig, backbone_class, family_of
from .checkpoint_fingerprints import backbone_fingerprint, check_fingerprint
from .checkpoint_weights import (
    HEAD_PREFIX,
    base_model_commit,
    check_shards,
    damage_is_named,
    load_backbone,
    load_head_weights,
    load_tokenizer,
    raise_on_mismatch,
    with_prefix,
)
from .configuration_asymvlm import AsymVLMConfig
from .frozen_backbone import FrozenBackboneModel


# What selects and reaches a repository. Of these, `REPOSITORY_KWARGS` speak of one repository alone and must never be
# passed on from a head's repository to its backbone's.
HUB_KWARGS = ("cache_dir", "local_files_only", "token", "proxies")
BASE_ARGUMENT = "base_model_name_or_path=, the name or folder of the backbone"
REPOSITORY_KWARGS = ("revision", "subfolder", "force_download", "variant", "use_safetensors", "_commit_hash")


class LoadableModel(FrozenBackboneModel):
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
        known = set(inspect.signature(AsymVLMConfig.__init__).parameters) - {"self", "vlm_config", "kwargs"}
        unknown = sorted(set(config_kwargs) - known)
        if unknown:
            raise TypeError(f"AsymVLMConfig has no argument {', '.join(unknown)}.")
        hub_kwargs = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        if not isinstance(vlm, str | os.PathLike | PreTrainedModel):
            raise TypeError(f"vlm must be a name, a folder or a live `PreTrainedModel`, got {type(vlm).__name__}.")
        if isinstance(vlm, PreTrainedModel):
            if revision is not None or device_map is not None:
                raise ValueError(
                    "revision and device_map say how to load a backbone, but a live one was passed: pass its name "
                    "instead, or move it before."
                )
            base, backbone = None, _copy_of(vlm, dtype, attn_implementation)
            vlm_config = backbone.config
        else:
            hub_kwargs |= {"revision": revision, "trust_remote_code": trust_remote_code}
            if trust_remote_code:
                values, _ = PreTrainedConfig.get_config_dict(vlm, **hub_kwargs)
                if values.get("model_type") not in CONFIG_MAPPING:
                    class_references(values.get("auto_map"))
            base, vlm_config = os.fspath(vlm), AutoConfig.from_pretrained(vlm, **hub_kwargs)
            if is_remote_code(vlm_config):
                vlm_config = with_loaded_code(vlm_config, vlm, **hub_kwargs)
            backbone_class(vlm_config)
            if text_pad_token_id is None and not family_of(vlm_config).reads_text_mask:
                text_pad_token_id = load_tokenizer(base, **hub_kwargs).pad_token_id
        check_not_quantized(vlm_config)
        config = AsymVLMConfig(
            vlm_config=vlm_config,
            text_pad_token_id=text_pad_token_id,
            base_model_name_or_path=base,
            base_model_revision=None if base is None else base_model_commit(base, **hub_kwargs),
            **config_kwargs,
        )
        placing = {"dtype": dtype, "attn_implementation": attn_implementation, "device_map": device_map}
        if base is not None:
            backbone = load_backbone(
                base, vlm_config, **(placing if quantization_config is None else {"dtype": dtype}), **hub_kwargs
            )
        config.backbone_fingerprint, width = backbone_fingerprint(backbone, text_length=config.fixed_text_length)
        if width != config.projection_dim:
            raise ValueError(
                f"The features of {type(backbone).__name__} are {width} wide, but projection_dim is "
                f"{config.projection_dim}: pass projection_dim={width}."
            )
        model = cls(config, vlm=backbone)
        if quantization_config is not None:
            return cls._quantized(model, quantization_config=quantization_config, **placing)
        model.text_head.to(backbone.device)
        return model.eval()

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
        own_hub_kwargs = {k: kwargs[k] for k in (*HUB_KWARGS, *REPOSITORY_KWARGS) if kwargs.get(k) is not None}
        if pretrained_model_name_or_path is not None and not isinstance(config, PreTrainedConfig):
            config, kwargs = cls.config_class.from_pretrained(
                pretrained_model_name_or_path if config is None else config, return_unused_kwargs=True, **kwargs
            )
        config = copy.deepcopy(config)
        kwargs = {k: v for k, v in kwargs.items() if k not in (*HUB_KWARGS, *REPOSITORY_KWARGS)}
        head_only = config is not None and config.vlm_config is not None and config.save_backbone is False
        source = f"checkpoint {str(pretrained_model_name_or_path)!r}"
        base_hub_kwargs: dict[str, Any] = {k: v for k, v in own_hub_kwargs.items() if k in HUB_KWARGS}
        if config is not None and config.base_model_revision is not None:
            base_hub_kwargs["revision"] = config.base_model_revision
        if config is not None and trust_remote_code and isinstance(config.vlm_config, RemoteCodeConfig):
            place, place_kwargs = config.base_model_name_or_path, base_hub_kwargs
            if not head_only and not refers_to_hub(config.vlm_config):
                place, place_kwargs = pretrained_model_name_or_path, own_hub_kwargs
                if os.path.isdir(place):
                    place = os.path.join(place, own_hub_kwargs.get("subfolder", ""))
            config.vlm_config = with_loaded_code(
                config.vlm_config, place, **{**place_kwargs, "code_revision": code_revision}
            )
        if pretrained_model_name_or_path is None or not head_only:
            check_shards(
                pretrained_model_name_or_path, own_hub_kwargs.get("subfolder", ""), own_hub_kwargs.get("variant")
            )
            with damage_is_named(source):
                loaded: Any = super().from_pretrained(
                    pretrained_model_name_or_path,
                    *model_args,
                    config=config,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **{**kwargs, **own_hub_kwargs},
                )
            model, loading_info = loaded
            raise_on_mismatch(loading_info, source)
            hand_quantizer_to_backbone(model)
            model._freeze_backbone()
        else:
            backbone_class(config.vlm_config)
            own_hub_kwargs = {k: v for k, v in own_hub_kwargs.items() if k not in ("use_safetensors", "_commit_hash")}
            head = load_head_weights(pretrained_model_name_or_path, **own_hub_kwargs)
            adapter_kwargs = dict(kwargs.pop("adapter_kwargs", None) or {})
            adapters = adapter_kwargs.pop("_adapter_model_path", None)  # where AutoModel was sent to a PEFT folder
            model, loading_info = cls._with_backbone(config, head, source, {**kwargs, **base_hub_kwargs})
            if adapters is not None:
                model.load_adapter(adapters, adapter_kwargs=adapter_kwargs)
                model._freeze_backbone()
            model.name_or_path = model.config.name_or_path = os.fspath(pretrained_model_name_or_path)
        return (model, loading_info) if output_loading_info else model

    @classmethod
    def _with_backbone(
        cls, config: AsymVLMConfig, head: dict[str, torch.Tensor], source: str, base_kwargs: dict[str, Any]
    ) -> tuple[Self, dict[str, Any]]:
        """A model of a head's weights and the backbone that `config` names, loaded with `base_kwargs`."""
        if base_kwargs.get("dtype") in (None, "auto"):
            base_kwargs["dtype"] = config.dtype or "auto"  # the backbone's when the checkpoint was saved
        if isinstance(base_kwargs.get("attn_implementation"), dict):
            base_kwargs["attn_implementation"] = base_kwargs["attn_implementation"].get("vlm_config")
        base, vlm_config = config.base_model_name_or_path, config.vlm_config
        quantized = base_kwargs.pop("quantization_config", None)
        placing = {"dtype": base_kwargs["dtype"]}
        if quantized is not None:
            for name in ("device_map", "attn_implementation"):
                placing[name] = base_kwargs.pop(name, None)
        if base is None:
            raise ValueError(f"{source} holds the head alone and does not name its backbone: pass {BASE_ARGUMENT}.")
        try:
            backbone = load_backbone(base, vlm_config, **base_kwargs)  # type: ignore[arg-type]
        except OSError as error:
            raise OSError(
                f"{source} holds the head alone, and its backbone {base!r} cannot be loaded: {error}\n"
                f"If it has moved, pass {BASE_ARGUMENT}."
            ) from error
        with torch.device("meta"):  # nothing is initialised only to be overwritten
            model = cls(config, vlm=backbone)
        expected = with_prefix(HEAD_PREFIX, model.text_head.state_dict())
        loading_info: dict[str, Any] = {
            "missing_keys": expected.keys() - head.keys(),
            "unexpected_keys": head.keys() - expected.keys(),
            "mismatched_keys": {k for k in expected.keys() & head.keys() if head[k].shape != expected[k].shape},
            "error_msgs": [],
        }
        raise_on_mismatch(loading_info, source)
        state_dict = {
            name.removeprefix(HEAD_PREFIX): tensor.to(backbone.device, torch.float32, copy=True)
            for name, tensor in head.items()
        }
        model.text_head.load_state_dict(state_dict, assign=True)
        model.text_head.eval()
        model.training = False
        if config.backbone_fingerprint is not None:
            fixed_length = config.fixed_text_length
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
