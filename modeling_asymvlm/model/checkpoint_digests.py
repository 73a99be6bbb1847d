"""Digests of weights, which stand in the header of their own file and are compared whenever it is read."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


DIGEST = "asymvlm_sha256"


def seal_weights(files: Iterable[str | os.PathLike], mode: int) -> None:
    """
    Writes the digest of its weights into the header of each safetensors file, and its permissions; safetensors would
    keep everybody else from reading. An error or an interruption leaves the file without a digest.

    Args:
        files (`Iterable[str | os.PathLike]`): the files.
        mode (`int`): their permissions.
    """
    for file in map(Path, files):
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
        tensors = load_file(file)
        unfinished = file.with_name(f".{file.name}.unfinished")
        try:
            save_file(tensors, unfinished, metadata={**metadata, DIGEST: _digest(tensors.items())})
            unfinished.chmod(mode)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)


def check_digest(file: str | os.PathLike, source: str) -> None:
    """
    Reads all weights of a safetensors file and compares them with the digest in its header; a file that was not saved
    by this code has none.

    Args:
        file (`str` or `os.PathLike`): the file.
        source (`str`): what it belongs to, for the message.

    Raises:
        ValueError: if a weight is not as it was saved.
    """
    with safe_open(file, framework="pt") as opened:
        written = (opened.metadata() or {}).get(DIGEST)
        if written is not None and written != _digest((name, opened.get_tensor(name)) for name in opened.keys()):
            raise ValueError(
                f"The weights in {source} are damaged: those of {str(file)!r} are not as they were saved (their "
                "SHA-256 differs). Download or save them again."
            )


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    parts: list[Any] = []
    for name, tensor in tensors:
        content = hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        parts.append((name, str(tensor.dtype), tuple(tensor.shape), content.hexdigest()))
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()
