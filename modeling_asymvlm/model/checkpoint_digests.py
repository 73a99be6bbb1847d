"""Digests of weights, which stand in the header of their own safetensors file and are compared whenever it is read.

A file begins with the length of its header, eight bytes little-endian, and the header, JSON that says type, shape and
place of each tensor, with free text under `__metadata__`; the tensors follow
(https://huggingface.co/docs/safetensors/index#format).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO


DIGEST = "asymvlm_sha256"
METADATA = "__metadata__"
MOST_HEADER_BYTES = 100_000_000  # as safetensors has it
BYTES_AT_A_TIME = 2**20


def seal_weights(files: Iterable[str | os.PathLike], mode: int) -> None:
    """
    Writes the digest of its weights into the header of each safetensors file, and its permissions; safetensors would
    keep everybody else from reading. An error or an interruption leaves the file without a digest.

    Args:
        files (`Iterable[str | os.PathLike]`): the files.
        mode (`int`): their permissions.
    """
    for file in map(Path, files):
        unfinished = file.with_name(f".{file.name}.unfinished")
        try:
            with file.open("rb") as source, unfinished.open("wb") as target:
                header, start = _header(source)
                metadata = {**header.get(METADATA, {}), DIGEST: _digest(header, source)}
                text = json.dumps({**header, METADATA: metadata}, separators=(",", ":")).encode()
                text += b" " * (-len(text) % 8)  # tensors begin where their types may lie
                target.write(len(text).to_bytes(8, "little") + text)
                source.seek(start)
                shutil.copyfileobj(source, target, BYTES_AT_A_TIME)
            unfinished.chmod(mode)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)


def check_digest(file: str | os.PathLike, source: str) -> None:
    """
    Reads all of a safetensors file and compares it with the digest in its header. A file that was not saved by this
    code has none; what is no safetensors file, or cut short, is left to whoever loads it.

    Args:
        file (`str` or `os.PathLike`): the file.
        source (`str`): what it belongs to, for the message.

    Raises:
        ValueError: if a weight is not as it was saved.
    """
    with open(file, "rb") as opened:
        try:
            header, start = _header(opened)
            end = start + max(
                (entry["data_offsets"][1] for name, entry in header.items() if name != METADATA), default=0
            )
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            return
        if os.fstat(opened.fileno()).st_size != end:
            return
        metadata = header.get(METADATA)
        written = metadata.get(DIGEST) if isinstance(metadata, dict) else None
        if written is not None and written != _digest(header, opened):
            raise ValueError(
                f"The weights in {source} are damaged: those of {str(file)!r} are not as they were saved (their "
                "SHA-256 differs). Download or save them again."
            )


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a file, and where its tensors begin, which is where the file stands then."""
    length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    return header, 8 + length


def _digest(header: dict[str, Any], file: BinaryIO) -> str:
    """Of types, shapes, places and all bytes of the tensors; reads the file from where it stands to its end."""
    tensors = {name: entry for name, entry in header.items() if name != METADATA}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    while piece := file.read(BYTES_AT_A_TIME):
        digest.update(piece)
    return digest.hexdigest()
