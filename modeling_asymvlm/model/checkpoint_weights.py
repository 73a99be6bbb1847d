"""Reading weights: a backbone's, a head's, and the errors for files that do not hold what they should."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from .backbones import backbone_class
from .checkpoint_code import check_file_names
from .checkpoint_digests import check_digest


BACKBONE_PREFIX, HEAD_PREFIX = "vlm.", "text_head."


def with_prefix(prefix: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dictionary of a part of an `AsymVLMModel` as part of the whole."""
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def base_model_commit(name_or_path: str | os.PathLike, **hub_kwargs: Any) -> str | None:
    """Commit of the Hub repository that `config.json` was read from; `None` for a local folder."""
    if os.path.isdir(name_or_path):
        return None
    return extract_commit_hash(cached_file(name_or_path, "config.json", **hub_kwargs), None)


def load_tokenizer(name_or_path: str | os.PathLike, **kwargs: Any) -> PreTrainedTokenizerBase:
    """
    The backbone's tokenizer. Raises `ValueError` with the remedy if it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path, **kwargs)
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


@contextmanager
def damage_is_named(source: str) -> Iterator[None]:
    """Turns the failure to read a damaged safetensors file into a `ValueError` that names `source`."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # transformers has no name for it of its own
            raise
        raise ValueError(
            f"The weights in {source} are damaged or cut short ({error}): download or save them again."
        ) from error


def load_backbone(name_or_path: str | os.PathLike, vlm_config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """
    A backbone with all its weights.

    Args:
        name_or_path (`str` or `os.PathLike`): Hub repository or folder of the backbone.
        vlm_config (`PreTrainedConfig`): the configuration it must fit.
        kwargs: `revision`, `dtype` and the rest of `AutoModel.from_pretrained`.

    Raises:
        ValueError: if the repository lacks weights that the configuration asks for, holds others, is damaged, or names
            files outside of itself.
    """
    source = f"backbone {str(name_or_path)!r}"
    check_shards(name_or_path)
    with damage_is_named(source):
        backbone, loading_info = backbone_class(vlm_config).from_pretrained(
            name_or_path, config=vlm_config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    # Public checkpoints often hold more than the model needs (position ids of older versions), but never less.
    raise_on_mismatch({**loading_info, "unexpected_keys": ()}, source)
    return backbone


def check_shards(name_or_path: str | os.PathLike | None, subfolder: str = "", variant: str | None = None) -> None:
    """Raises `ValueError` if a sharded checkpoint in a folder names weights outside of it; the Hub's client does."""
    index = os.path.join(name_or_path or "", subfolder, _with_variant(SAFE_WEIGHTS_INDEX_NAME, variant))
    if name_or_path is not None and os.path.isfile(index):
        shard_names(index)


def shard_names(index: str | os.PathLike) -> list[str]:
    """The files that an index of sharded weights names. Raises `ValueError` for others than safetensors beside it."""
    try:
        with open(index, encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(index)!r} is no index of weights ({type(error).__name__}: {error}): download or save it again."
        ) from error
    check_file_names(names, str(index))
    for name in names:
        if not name.endswith(".safetensors"):
            raise ValueError(f"{index} names the file {name!r}, but weights are read from safetensors files alone.")
    return names


def load_head_weights(
    name_or_path: str | os.PathLike, *, variant: str | None = None, **hub_kwargs: Any
) -> dict[str, torch.Tensor]:
    """
    State dictionary of a head-only checkpoint, in one safetensors file or in shards with an index.

    Args:
        name_or_path (`str` or `os.PathLike`): Hub repository or folder.
        variant (`str`, *optional*): as in `model.VARIANT.safetensors`.
        hub_kwargs: `revision`, `subfolder`, `cache_dir`, `local_files_only`, `token`, `force_download`, `proxies`.

    Raises:
        OSError: if there is no such file.
        ValueError: if a file is damaged, also by a single bit, or an index names one outside the repository.
    """
    source = f"checkpoint {str(name_or_path)!r}"
    state_dict: dict[str, torch.Tensor] = {}
    with damage_is_named(source):
        for path in weight_files(name_or_path, variant=variant, **hub_kwargs):
            check_digest(path, source)
            state_dict |= load_state_dict(path)
    return state_dict


def weight_files(name_or_path: str | os.PathLike, *, variant: str | None = None, **hub_kwargs: Any) -> list[str]:
    """The safetensors files of a checkpoint on this machine; arguments and errors as of [`load_head_weights`]."""
    single = _with_variant(SAFE_WEIGHTS_NAME, variant)
    missing_is_fine = {"_raise_exceptions_for_missing_entries": False, **hub_kwargs}
    paths: list[Any] = [cached_file(name_or_path, single, **missing_is_fine)]
    if paths == [None]:
        index = cached_file(name_or_path, _with_variant(SAFE_WEIGHTS_INDEX_NAME, variant), **missing_is_fine)
        names = [single] if index is None else shard_names(index)
        paths = [cached_file(name_or_path, name, **hub_kwargs) for name in names]
    return paths


def _with_variant(name: str, variant: str | None) -> str:
    stem, _, ending = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"
