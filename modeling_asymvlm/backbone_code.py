"""Backbones whose code lies in a repository: run when, and only when, the user allows it."""

import os
import re
from typing import Any

from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .backbones import RemoteCodeConfig, backbone_class


CLASS_REFERENCE = re.compile(r"([\w.-]+(/[\w.-]+)?--)?\w+\.\w+")


def with_loaded_code(vlm_config: PreTrainedConfig, source: str | os.PathLike, **hub_kwargs: Any) -> PreTrainedConfig:
    """
    Loads the code of a backbone that is no part of transformers; call it only with the user's `trust_remote_code`.

    Args:
        vlm_config (`PreTrainedConfig`): a [`RemoteCodeConfig`], or a configuration of the code's own class.
        source (`str` or `os.PathLike`): repository or folder of the code, where `auto_map` names no other.
        hub_kwargs: `code_revision`, `cache_dir`, `local_files_only`, `token`.

    Returns:
        The configuration in the code's own class, for which `AutoModel` now knows the model.

    Raises:
        ValueError: if `auto_map` lacks a class or names something that is no module beside the checkpoint.
    """
    references = getattr(vlm_config, "auto_map", None) or {}
    wanted: dict[str, Any] = {name: references.get(name) for name in ("AutoConfig", "AutoModel")}
    for name, reference in wanted.items():
        if not isinstance(reference, str) or not CLASS_REFERENCE.fullmatch(reference):
            raise ValueError(
                f"The backbone's auto_map gives {reference!r} for {name}: a reference such as 'modeling_x.XModel' was "
                "expected. No code was run."
            )
    classes: dict[str, Any] = {
        name: get_class_from_dynamic_module(reference, source, **hub_kwargs) for name, reference in wanted.items()
    }
    if isinstance(vlm_config, RemoteCodeConfig):
        values = vlm_config.to_dict()
        for name in ("model_type", "code_model_type"):
            values.pop(name)
        vlm_config = classes["AutoConfig"].from_dict(values)
    AutoModel.register(type(vlm_config), classes["AutoModel"], exist_ok=True)
    backbone_class(vlm_config)
    return vlm_config


def is_remote_code(vlm_config: PreTrainedConfig) -> bool:
    """Whether the configuration's class was loaded from a repository, which the user has allowed then."""
    return type(vlm_config).__module__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME


def refers_to_hub(vlm_config: PreTrainedConfig) -> bool:
    """Whether the code is looked up in a repository on the Hub, not beside the checkpoint."""
    return "--" in str((getattr(vlm_config, "auto_map", None) or {}).get("AutoModel"))


def save_code(vlm: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Copies the code of a backbone that came from a folder beside its weights; code on the Hub is referred to."""
    if not refers_to_hub(vlm.config):
        for part in (vlm, vlm.config):
            custom_object_save(part, folder)
