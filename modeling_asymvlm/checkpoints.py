"""Weights in and out: where a backbone's weights come from, what a head-only checkpoint holds, and strict loading."""

import inspect
import os
from typing import Any, Self

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.quantization_config import QuantizationConfigMixin

from .backbones import check_backbone_config, uses_text_mask
from .configuration_asymvlm import AsymVLMConfig
from .heads import ProbabilisticTextHead
from .quantization import check_not_quantized, hand_quantizer_to_backbone, is_quantized


# What selects and reaches a repository. Of these, `REPOSITORY_KWARGS` speak of one repository alone and must never be
# passed on from a head's repository to its backbone's.
HUB_KWARGS = ("cache_dir", "local_files_only", "token", "proxies")
REPOSITORY_KWARGS = ("revision", "subfolder", "force_download")

BACKBONE_PREFIX, HEAD_PREFIX = "vlm.", "text_head."


def base_model_commit(name_or_path: str | os.PathLike, **hub_kwargs) -> str | None:
    """Commit of the Hub repository that `config.json` was read from; `None` for a local folder."""
    if os.path.isdir(name_or_path):
        return None
    return extract_commit_hash(cached_file(name_or_path, "config.json", **hub_kwargs), None)


def load_tokenizer(name_or_path: str | os.PathLike, **hub_kwargs) -> PreTrainedTokenizerBase:
    """
    The backbone's tokenizer. Raises `ValueError` with the remedy if it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path, **hub_kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"This backbone wants padded texts, but the tokenizer of {str(name_or_path)!r}, which knows the padding "
            f"token, cannot be loaded ({error}). Pass text_pad_token_id."
        ) from error


def raise_on_mismatch(loading_info: dict, source: str) -> None:
    """
    Raises `ValueError` if the weights read from `source` were not exactly those of the model: transformers itself only
    logs missing weights and leaves them random.
    """
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(key) for key in loading_info[kind])
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(
                f"The weights in {source} do not belong to this configuration: {kind.replace('_', ' ')} {shown}. "
                "Is the checkpoint complete, and was its config.json written with it?"
            )


def load_backbone_weights(
    name_or_path: str | os.PathLike, vlm_config: PreTrainedConfig, **kwargs
) -> dict[str, torch.Tensor]:
    """
    State dictionary of a backbone, its keys prefixed with `vlm.`; no key is missing.

    Args:
        name_or_path (`str` or `os.PathLike`): Hub repository or folder of the backbone.
        vlm_config (`PreTrainedConfig`): the configuration it must fit.
        kwargs: `revision`, `dtype` and the rest of `AutoModel.from_pretrained`.

    Raises:
        ValueError: if the repository lacks weights that the configuration asks for.
    """
    backbone, loading_info = AutoModel.from_pretrained(
        name_or_path, config=vlm_config, output_loading_info=True, **kwargs
    )
    # Public checkpoints often hold more than the model needs (position ids of older versions), but never less.
    raise_on_mismatch({**loading_info, "unexpected_keys": ()}, f"backbone {str(name_or_path)!r}")
    return with_prefix(BACKBONE_PREFIX, backbone.state_dict())


def with_prefix(prefix: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dictionary of a part of an `AsymVLMModel` as part of the whole."""
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def load_head_weights(name_or_path: str | os.PathLike, **hub_kwargs) -> dict[str, torch.Tensor]:
    """State dictionary in the `model.safetensors` of a head-only checkpoint. Raises `OSError` if there is none."""
    path: Any = cached_file(name_or_path, SAFE_WEIGHTS_NAME, **hub_kwargs)
    return load_state_dict(path)


class AsymVLMPreTrainedModel(PreTrainedModel):
    """
    Composing, loading and saving: the backbone `self.vlm` comes out of each of them frozen and in evaluation mode, and
    no weight is ever left random in silence.
    """

    config_class = AsymVLMConfig
    base_model_prefix = "asymvlm"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    accepts_loss_kwargs = False
    # No attention of its own: each tower of the backbone checks for itself.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _keep_in_fp32_modules_strict = ["text_head"]
    _keep_in_fp32_modules = ["text_head"]  # what the quantisers leave alone

    vlm: PreTrainedModel | None

    def _freeze_backbone(self) -> None:
        if self.vlm is not None:
            self.vlm.requires_grad_(False)
            self.vlm.eval()

    def train(self, mode: bool = True) -> Self:
        """
        Sets the head's mode; the backbone stays in evaluation mode, so that dropout never moves its features.

        Raises:
            ValueError: if a parameter of the backbone, or of an adapter in it, asks for gradients that it never gets.
        """
        super().train(mode)
        if self.vlm is not None:
            self.vlm.eval()
            learning = [name for name, parameter in self.vlm.named_parameters() if parameter.requires_grad]
            if mode and learning:
                raise ValueError(
                    f"Parameter {BACKBONE_PREFIX}{learning[0]} has requires_grad, but the backbone is frozen: its "
                    "features are computed without gradients, so it would never learn. Freeze it with "
                    "model.vlm.requires_grad_(False), and put adapters on the linear layers of text_head alone."
                )
        return self

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Changes nothing: the frozen backbone runs without gradients, so it keeps no activations to recompute."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freezes or unfreezes the head and the temperature; the backbone stays frozen."""
        super().requires_grad_(requires_grad)
        self._freeze_backbone()
        return self

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
            quantization_config (`QuantizationConfigMixin` or `dict`, *optional*):
                Quantises the backbone, as in `AutoModel.from_pretrained`; the head stays in float32. The weights named
                or given must not be quantised yet.
            text_pad_token_id (`int`, *optional*): defaults to that of the backbone's tokenizer where it is needed.
            config_kwargs: the other arguments of [`AsymVLMConfig`].

        Raises:
            ValueError: if the backbone is not an image–text model or quantised already, or a value is out of range.
            TypeError: for an argument that [`AsymVLMConfig`] does not know.
            OSError: if there is no such repository or folder.
        """
        known = set(inspect.signature(AsymVLMConfig.__init__).parameters) - {"self", "vlm_config", "kwargs"}
        unknown = sorted(set(config_kwargs) - known)
        if unknown:
            raise TypeError(f"AsymVLMConfig has no argument {', '.join(unknown)}.")
        hub_kwargs = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        if isinstance(vlm, PreTrainedModel):
            vlm_config, base = vlm.config, None
        else:
            hub_kwargs["revision"] = revision
            vlm_config, base = AutoConfig.from_pretrained(vlm, **hub_kwargs), os.fspath(vlm)
        check_backbone_config(vlm_config)
        check_not_quantized(vlm_config)
        if base is not None and text_pad_token_id is None and not uses_text_mask(vlm_config):
            text_pad_token_id = load_tokenizer(base, **hub_kwargs).pad_token_id
        config = AsymVLMConfig(
            vlm_config=vlm_config,
            text_pad_token_id=text_pad_token_id,
            base_model_name_or_path=base,
            base_model_revision=None if base is None else base_model_commit(base, **hub_kwargs),
            **config_kwargs,
        )
        if isinstance(vlm, PreTrainedModel):
            state_dict = with_prefix(BACKBONE_PREFIX, {k: v.clone() for k, v in vlm.state_dict().items()})
        else:
            state_dict = load_backbone_weights(vlm, vlm_config, dtype=dtype, **hub_kwargs)
        head = with_prefix(HEAD_PREFIX, ProbabilisticTextHead(config).state_dict())
        return cls._from_state_dict(
            config,
            {**state_dict, **head},
            f"backbone {base or type(vlm).__name__}",
            dtype=dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            quantization_config=quantization_config,
        )[0]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        r"""
        Loads a checkpoint, whole or head-only; for the latter, the backbone's weights come from
        `config.base_model_name_or_path` at `config.base_model_revision`. Arguments as for
        `PreTrainedModel.from_pretrained`; `quantization_config` quantises the backbone alone.

        Raises:
            ValueError: if weights are missing, unexpected or of another shape, in the checkpoint or in the backbone.
            OSError: if there is no such repository, folder or file.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        own_hub_kwargs = {k: kwargs[k] for k in (*HUB_KWARGS, *REPOSITORY_KWARGS) if kwargs.get(k) is not None}
        if pretrained_model_name_or_path is not None and not isinstance(config, PreTrainedConfig):
            config, kwargs = cls.config_class.from_pretrained(
                pretrained_model_name_or_path if config is None else config, return_unused_kwargs=True, **kwargs
            )
        head_only = config is not None and config.vlm_config is not None and config.save_backbone is False
        if pretrained_model_name_or_path is None or not head_only:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                config=config,
                output_loading_info=True,
                **{**kwargs, **own_hub_kwargs},
            )
            model, loading_info = loaded
            raise_on_mismatch(loading_info, f"checkpoint {str(pretrained_model_name_or_path)!r}")
            hand_quantizer_to_backbone(model)
            model._freeze_backbone()
        else:
            head = load_head_weights(pretrained_model_name_or_path, **own_hub_kwargs)
            kwargs = {k: v for k, v in kwargs.items() if k not in (*HUB_KWARGS, *REPOSITORY_KWARGS)}
            if kwargs.get("dtype") in (None, "auto"):
                kwargs["dtype"] = config.dtype or "auto"  # the backbone's when the checkpoint was saved
            backbone = load_backbone_weights(
                config.base_model_name_or_path,
                config.vlm_config,
                revision=config.base_model_revision,
                dtype=kwargs["dtype"],
                **{k: v for k, v in own_hub_kwargs.items() if k in HUB_KWARGS},
            )
            source = f"checkpoint {str(pretrained_model_name_or_path)!r}"
            adapter_kwargs = dict(kwargs.pop("adapter_kwargs", None) or {})
            adapters = adapter_kwargs.pop("_adapter_model_path", None)  # where AutoModel was sent to a PEFT folder
            model, loading_info = cls._from_state_dict(config, {**backbone, **head}, source, **kwargs)
            if adapters is not None:
                model.load_adapter(adapters, adapter_kwargs=adapter_kwargs)
                model._freeze_backbone()
            model.name_or_path = model.config.name_or_path = os.fspath(pretrained_model_name_or_path)
        return (model, loading_info) if output_loading_info else model

    @classmethod
    def _from_state_dict(
        cls, config: AsymVLMConfig, state_dict: dict[str, torch.Tensor], source: str, **kwargs
    ) -> tuple[Self, dict]:
        loaded: Any = super().from_pretrained(
            None, config=config, state_dict=state_dict, output_loading_info=True, **kwargs
        )
        model, loading_info = loaded
        model.name_or_path = model.config.name_or_path = ""
        raise_on_mismatch(loading_info, source)
        hand_quantizer_to_backbone(model)
        model._freeze_backbone()
        return model, loading_info

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike, *, save_backbone: bool | None = None, **kwargs
    ) -> None:
        r"""
        Writes the configuration and `model.safetensors`, with or without the backbone's weights.

        Args:
            save_directory (`str` or `os.PathLike`): folder to write to; created if need be.
            save_backbone (`bool`, *optional*):
                Defaults to `config.save_backbone`, and where that is not set, to writing the backbone's weights unless
                they come from a Hub repository at a known commit. `False` needs `config.base_model_name_or_path`.
            kwargs: the other arguments of `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: if a head-only checkpoint is asked for and the backbone has no known source, or a whole one
                while the backbone is quantised.
        """
        if save_backbone is None:
            save_backbone = self.config.save_backbone
        if save_backbone is None:
            save_backbone = self.config.base_model_revision is None
        if self.vlm is not None and not save_backbone and self.config.base_model_name_or_path is None:
            raise ValueError(
                "A head-only checkpoint must name its backbone, but base_model_name_or_path is not known: compose the "
                "model with from_vlm_pretrained and a repository or folder, or pass save_backbone=True."
            )
        if save_backbone and is_quantized(self.vlm):
            raise ValueError(
                "The backbone is quantised, and quantised weights are not written: pass save_backbone=False, which "
                "leaves the backbone to its repository, or save the model whole without quantization_config."
            )
        # transformers reads both while saving: which weights stay out of the file, and what config.json says of them.
        self._keys_to_ignore_on_save = None
        if self.vlm is not None and not save_backbone:
            self._keys_to_ignore_on_save = list(with_prefix(BACKBONE_PREFIX, self.vlm.state_dict()))
        written = {"save_backbone": save_backbone}
        if save_backbone and self.config.base_model_revision is None:
            written["base_model_name_or_path"] = None  # a folder of this machine means nothing elsewhere
        kept = {name: getattr(self.config, name) for name in written}
        try:
            for name, value in written.items():
                setattr(self.config, name, value)
            super().save_pretrained(save_directory, **kwargs)
        finally:
            for name, value in kept.items():
                setattr(self.config, name, value)
