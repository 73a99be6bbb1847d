"""Backbones whose code lies in a repository: run when, and only when, the user allows it."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .backbones import RemoteCodeConfig, backbone_class
from .checkpoint_code import check_auto_map, code_files


def class_references(auto_map: Mapping[str, Any] | None) -> dict[str, str]:
    """
    The references to a backbone's classes in its `auto_map`, checked before any code is run.

    Raises:
        ValueError: if one of them is missing or could name a file outside of its repository.
    """
    check_auto_map(auto_map)
    wanted: dict[str, Any] = {name: (auto_map or {}).get(name) for name in ("AutoConfig", "AutoModel")}
    for name, reference in wanted.items():
        if not isinstance(reference, str):
            raise ValueError(
                f"The backbone's auto_map gives {reference!r} for {name}: a reference such as 'modeling_x.XModel' was "
                "expected. No code was run."
            )
    return wanted


def with_loaded_code(vlm_config: PreTrainedConfig, source: str | os.PathLike, **hub_kwargs: Any) -> PreTrainedConfig:
    """
    Loads the code of a backbone that is no part of transformers; call it only with the user's `trust_remote_code`.

    Args:
        vlm_config (`PreTrainedConfig`): a [`RemoteCodeConfig`], or a configuration of the code's own class.
        source (`str` or `os.PathLike`): repository or folder of the code, where `auto_map` names no other.
        hub_kwargs: `revision` of `source`; `code_revision`, where the code lies in another repository; `cache_dir`,
            `local_files_only`, `token`.

    Returns:
        The configuration in the code's own class, for which `AutoModel` now knows the model.

    Raises:
        ValueError: if `auto_map` lacks a class or names something that is no module beside the checkpoint.
    """
    references = class_references(getattr(vlm_config, "auto_map", None))
    classes: dict[str, Any] = {
        name: get_class_from_dynamic_module(reference, source, **hub_kwargs) for name, reference in references.items()
    }
    if isinstance(vlm_config, RemoteCodeConfig):
        values = vlm_config.to_dict()
        values.pop("model_type")
        vlm_config = classes["AutoConfig"].from_dict(values)
    AutoModel.register(type(vlm_config), classes["AutoModel"], exist_ok=True)
    backbone_class(vlm_config)
    return vlm_config


def is_remote_code(vlm_config: PreTrainedConfig) -> bool:
    """Whether the configuration's class was loaded from a repository, which the user has allowed then."""
    return type(vlm_config).__module__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME


def needs_code(vlm_config: PreTrainedConfig) -> bool:
    """Whether a backbone of this configuration is no part of transformers, its code loaded or not."""
    return isinstance(vlm_config, RemoteCodeConfig) or is_remote_code(vlm_config)


def refers_to_hub(vlm_config: PreTrainedConfig) -> bool:
    """Whether the code is looked up in a repository on the Hub, not beside the checkpoint."""
    return "--" in str((getattr(vlm_config, "auto_map", None) or {}).get("AutoModel"))


def save_code(vlm: PreTrainedModel, folder: str | os.PathLike) -> None:
    """
    Copies the code of a backbone that came from a folder beside its weights; code on the Hub is referred to.

    Raises:
        ValueError: if a file of that code has the name of one of this package's, which travel to the same place.
    """
    if refers_to_hub(vlm.config):
        return
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for part in (vlm, vlm.config):
            custom_object_save(part, place)
        names = os.listdir(place)
        clashes = sorted({file.name for file in code_files()}.intersection(names))
        if clashes:
            raise ValueError(
                f"The backbone's code has the file {clashes[0]!r}, and so has AsymVLM's, which lies in the same "
                "folder: rename it, or put the backbone into a Hub repository, to which the checkpoint then refers."
            )
        for name in names:
            shutil.copyfile(os.path.join(place, name), os.path.join(folder, name))
