"""Where the parts of a checkpoint come from: the arguments that reach its repository, its backbone's, and code."""

import os
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from .backbone_code import class_references, is_remote_code, refers_to_hub, with_loaded_code
from .backbones import backbone_class
from .checkpoint_weights import BACKBONE_PREFIX, load_backbone


Place = str | os.PathLike
BASE_ARGUMENT = "base_model_name_or_path=, the name or folder of the backbone"

# What selects and reaches a repository. Of these, `REPOSITORY_KWARGS` speak of one repository alone and must never be
# passed on from a head's repository to its backbone's.
HUB_KWARGS = ("cache_dir", "local_files_only", "token", "proxies")
REPOSITORY_KWARGS = ("revision", "subfolder", "force_download", "variant", "use_safetensors", "_commit_hash")


def config_of_repository(place: Place, hub_kwargs: dict[str, Any]) -> PreTrainedConfig:
    """A backbone's configuration, its code loaded where that is allowed. Raises `ValueError` if it is no backbone."""
    if hub_kwargs["trust_remote_code"]:
        values, _ = PreTrainedConfig.get_config_dict(place, **hub_kwargs)
        if values.get("model_type") not in CONFIG_MAPPING:
            class_references(values.get("auto_map"))
    vlm_config = AutoConfig.from_pretrained(place, **hub_kwargs)
    if is_remote_code(vlm_config):
        vlm_config = with_loaded_code(vlm_config, place, **hub_kwargs)
    backbone_class(vlm_config)
    return vlm_config


def chosen(kwargs: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the arguments `names` that were passed."""
    return {name: kwargs[name] for name in names if kwargs.get(name) is not None}


def hub_kwargs_of_base(own: dict[str, Any], config: Any) -> dict[str, Any]:
    """What reaches the repository of the backbone at its commit, given the `own` arguments of a checkpoint's."""
    revision = {} if config.base_model_revision is None else {"revision": config.base_model_revision}
    return chosen(own, HUB_KWARGS) | revision


def device_map_of_base(device_map: Any) -> Any:
    """Of a `device_map` of the whole model, the part that its backbone gets when it is loaded alone."""
    if not isinstance(device_map, dict):
        return device_map
    whole = BACKBONE_PREFIX.removesuffix(".")
    inside = {name.removeprefix(BACKBONE_PREFIX): name for name in device_map if name.startswith(BACKBONE_PREFIX)}
    of_all = next((device_map[name] for name in (whole, "") if name in device_map), None)
    rest = {} if of_all is None else {"": of_all}
    return {**rest, **{name: device_map[full] for name, full in inside.items()}} or device_map


def place_of_code(place: Any, own: dict[str, Any], config: Any, head_only: bool) -> tuple[Any, dict[str, Any]]:
    """
    Where a backbone's code lies, and the arguments that reach it: beside the weights of a whole checkpoint, unless it
    refers to the Hub, and else in the repository of the backbone.
    """
    if head_only or refers_to_hub(config.vlm_config):
        return config.base_model_name_or_path, hub_kwargs_of_base(own, config)
    if os.path.isdir(place):
        place = os.path.join(place, own.get("subfolder", ""))
    return place, dict(own)


def backbone_of_head(config: Any, source: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The backbone that the head-only checkpoint `source` names. Raises `ValueError` or `OSError` with the remedy."""
    base = config.base_model_name_or_path
    if base is None:
        raise ValueError(f"{source} holds the head alone and does not name its backbone: pass {BASE_ARGUMENT}.")
    try:
        return load_backbone(base, config.vlm_config, **kwargs)
    except OSError as error:
        raise OSError(
            f"{source} holds the head alone, and its backbone {base!r} cannot be loaded: {error}\n"
            f"If it has moved, pass {BASE_ARGUMENT}."
        ) from error
