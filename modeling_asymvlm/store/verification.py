"""What makes files of features fit for use, checked once and again only when a file has changed."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ..utils.durable_files import sha256_of
from ..utils.json_files import read_json, write_json
from .feature_matrix import FeatureMatrix
from .file_states import State, state_of
from .parquet import read_column


VERIFIED_FILE = ".verified.json"
ROWS_PER_CHECK = 2**13
# A file that changes twice within one tick of the file system's clock keeps its time of change.
CLOCK_TICK = 100_000_000  # nanoseconds
LARGEST_NOTE = 2**24  # bytes, of a hundred thousand files


def verified_states(folder: Path) -> dict[str, State]:
    """The states in which files of a folder were verified, by name; none where that note is damaged."""
    try:
        found = read_json(folder / VERIFIED_FILE, max_bytes=LARGEST_NOTE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_verified(folder: Path, file: Path, verified: Mapping[str, State]) -> bool:
    """Whether a file is as it was when it was verified."""
    return file.is_file() and verified.get(str(file.relative_to(folder))) == state_of(file)


def record_verified(folder: Path, states: Mapping[Path, State]) -> None:
    """Remembers that files were verified in these states."""
    latest = time.time_ns() - CLOCK_TICK
    lasting = {str(file.relative_to(folder)): state for file, state in states.items() if state[1] < latest}
    with contextlib.suppress(OSError):  # where the note cannot be written, each reader verifies
        write_json(folder / VERIFIED_FILE, {**verified_states(folder), **lasting})


def damage_of(file: Path, record: Mapping[str, Any]) -> str | None:
    """What is wrong with a file of which `size` and `sha256` were recorded when it was written, or `None`."""
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != record["size"]:
        return f"is {size} bytes long, but was written with {record['size']}"
    return None if sha256_of(file) == record["sha256"] else "is not as it was written (its SHA-256 differs)"


def check_image_ids(files: Sequence[Path]) -> None:
    """Raises `ValueError` if an image has no identity, or shares it with another."""
    ids = read_column(files, "image_id", pa.large_string())
    if ids.null_count:
        raise ValueError(f"{_named(files)}: {ids.null_count} images have no image_id.")
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = pc.value_counts(ids)
        often = counts.filter(pc.greater(counts.field("counts"), 1))
        raise ValueError(
            f"{_named(files)}: some image_id stands more than once, the first is {often[0]['values'].as_py()!r}."
        )


def check_captions(files: Sequence[Path]) -> None:
    """Raises `ValueError` if a caption is no text, or empty."""
    for file in files:
        captions = read_column([file], "caption")
        if pa.types.is_dictionary(captions.type):
            captions = captions.cast(captions.type.value_type)
        if not (pa.types.is_string(captions.type) or pa.types.is_large_string(captions.type)):
            raise ValueError(f"{file}: caption must be text, but is {captions.type}.")
        lengths = pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(captions)), 0)
        empty = np.flatnonzero(lengths.to_numpy() == 0)
        if len(empty):
            raise ValueError(f"{file}: {len(empty)} captions are empty, the first in row {empty[0]}.")


def check_features(files: Sequence[Path], column: str, features: torch.Tensor | FeatureMatrix) -> None:
    """Raises `ValueError` if features are not finite."""
    start = 0
    for file in files:
        num_rows = pq.read_metadata(file).num_rows
        broken: list[int] = []
        for first in range(start, start + num_rows, ROWS_PER_CHECK):
            rows = features[first : min(first + ROWS_PER_CHECK, start + num_rows)]
            broken += (first - start + (~torch.isfinite(rows).all(dim=1)).nonzero()[:, 0]).tolist()
        if broken:
            image_id = read_column([file], "image_id")[broken[0]].as_py()
            raise ValueError(
                f"{file}: {column} is NaN or infinite in {len(broken)} of {num_rows} rows, the first is row "
                f"{broken[0]} (image_id {image_id!r}). Make these features again."
            )
        start += num_rows


def _named(files: Sequence[Path]) -> Path:
    return files[0] if len(files) == 1 else files[0].parent
