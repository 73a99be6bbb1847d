"""Files beside a checkpoint, in its folder or its repository on the Hub."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError


def checkpoint_file(name_or_path: str | os.PathLike, name: str, **hub_arguments: Any) -> Path:
    """
    Where a file of a checkpoint lies on this machine.

    Args:
        name_or_path (`str` or `os.PathLike`): the checkpoint's folder, or its repository on the Hub.
        name (`str`): of the file.
        hub_arguments: `revision`, `token`, `cache_dir` and others of `huggingface_hub.hf_hub_download`.

    Raises:
        FileNotFoundError: if the checkpoint has none, or the Hub cannot be reached and none is in the cache.
    """
    file = Path(name_or_path) / name
    if not Path(name_or_path).is_dir():
        try:
            file = Path(hf_hub_download(str(name_or_path), name, **hub_arguments))
        except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError) as error:
            raise FileNotFoundError(f"{str(name_or_path)!r} has no {name} available: {error}") from error
    if not file.is_file():
        raise FileNotFoundError(f"{str(name_or_path)!r} has no {name}.")
    return file
