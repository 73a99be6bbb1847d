"""The folder of a saved index, and what an index was made from.

index.json              kind, distribution, temperature, sizes, fingerprints of the model's head and of the splits;
                        identity, and size and SHA-256 of the others
vectors.faiss           the flat FAISS index, which any program with FAISS reads
labels.arrow            captions or image ids and columns of metadata, one a row, as an Arrow file
parameters.safetensors  float64: concentration and log_normalizer of every text; or, of images with a calibration, the
                        moments of their vectors and the range of their evidence
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from ..store.embedding_store import EmbeddingSplit
from ..utils.file_bundles import Bundle, BundleKind, opened_bundle, writing_bundle
from .row_table import LABEL


MANIFEST, VECTORS, LABELS, PARAMETERS = "index.json", "vectors.faiss", "labels.arrow", "parameters.safetensors"
INDEX = BundleKind("index", MANIFEST, (VECTORS, LABELS, PARAMETERS), 1, "Build and save it again.")
ENTRIES = ("num_rows", "dim", "distribution", "normalizer", "logit_scale", "model", "splits")
ROWS_PER_DIGEST = 8192
BYTES_AT_A_TIME = 2**20


class SavedIndex(NamedTuple):
    """
    What the folder of an index holds.

    Attributes:
        manifest (`dict`):
            `kind`, and what [`ENTRIES`] names; of images with a calibration also `calibration`, its identity, and
            `sigma` and `beta`.
        vectors (`faiss.IndexFlatIP`): one a row.
        table (`pa.Table`): `label`, captions or image ids, and columns of metadata, one a row.
        parameters (`dict[str, np.ndarray]`): float64, of every text, or of all images.
    """

    manifest: dict[str, Any]
    vectors: faiss.IndexFlatIP
    table: pa.Table
    parameters: dict[str, np.ndarray]


def split_fingerprint(split: EmbeddingSplit, kind: str) -> str:
    """SHA-256 of the labels and features of a split that an index of `kind` `"text"` or `"image"` holds."""
    labels, features = part_of_split(split, kind)
    digest = hashlib.sha256(json.dumps([kind, list(labels)]).encode())
    for start in range(0, len(features), ROWS_PER_DIGEST):
        digest.update(features[start : start + ROWS_PER_DIGEST].contiguous().numpy())
    return digest.hexdigest()


def part_of_split(split: EmbeddingSplit, kind: str) -> tuple[Any, Any]:
    """Captions and text features, or image ids and image features."""
    return (split.captions, split.text_features) if kind == "text" else (split.image_ids, split.image_features)


def write_index(
    path: Path,
    manifest: dict[str, Any],
    vectors: faiss.Index,
    table: pa.Table,
    parameters: dict[str, np.ndarray],
) -> None:
    """
    Writes a folder, in place of an index that was saved at `path` before. It is written beside it first: an error
    or an interruption leaves the old one.

    Raises:
        FileExistsError: if anything but an index or an empty folder is at `path`.
        OSError: if the disk is full or refuses.
    """
    with writing_bundle(path, INDEX, manifest) as folder:
        faiss.write_index(vectors, str(folder / VECTORS))
        with pa.OSFile(str(folder / LABELS), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        if parameters:
            save_file(parameters, folder / PARAMETERS)


def read_index(path: Path, kind: str, *, memory_map: bool) -> SavedIndex:
    """
    What [`write_index`] wrote, each file compared with its SHA-256 first, also where it is mapped.

    Raises:
        FileNotFoundError: if there is no index at `path`.
        ValueError: if it is of another kind or format, or its files are damaged or do not belong together.
        OSError: if a file may not be read.
    """
    with opened_bundle(path, INDEX) as bundle:
        manifest = bundle.content
        _check_manifest(bundle, kind)
        has_parameters = kind == "text" or manifest.get("calibration") is not None
        try:
            vectors = _vectors(bundle, memory_map=memory_map)
            table = bundle.mapped(LABELS, _mapped_table) if memory_map else _table(bundle.verified(LABELS).read())
            if table.schema.get_field_index(LABEL) < 0:
                raise KeyError(LABEL)
            parameters = load(bundle.verified(PARAMETERS).read()) if has_parameters else {}
        except (RuntimeError, KeyError, pa.ArrowInvalid, SafetensorError) as error:
            raise ValueError(
                f"The index at {str(path)!r} is incomplete or damaged ({error}): build and save it again."
            ) from error
    if not isinstance(vectors, faiss.IndexFlatIP):
        raise ValueError(f"{path / VECTORS} is no flat index of inner products: build and save the index again.")
    of_rows = parameters.values() if kind == "text" else ()
    sizes = {int(vectors.ntotal), len(table), *map(len, of_rows), manifest["num_rows"]}
    if len(sizes) > 1:
        raise ValueError(
            f"The files of the index at {str(path)!r} have {sorted(sizes)} rows, so that they do not belong together: "
            "build and save it again."
        )
    return SavedIndex(manifest, vectors, table, parameters)


def _check_manifest(bundle: Bundle, kind: str) -> None:
    manifest, file = bundle.content, bundle.path / MANIFEST
    try:
        found, *_ = manifest["kind"], *(manifest[entry] for entry in ENTRIES)
        if manifest.get("calibration") is not None:
            sigma, beta = float(manifest["sigma"]), float(manifest["beta"])
            if not (0 < sigma < math.inf and 0 <= beta < math.inf):
                raise ValueError(f"sigma is {sigma} and beta {beta}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): build and save the index again.") from error
    if found != kind:
        raise ValueError(
            f"{str(bundle.path)!r} holds a {found} index of format {INDEX.format}, but one of {kind}s is wanted. "
            "TextIndex reads text indexes, ImageIndex image indexes."
        )


def _vectors(bundle: Bundle, *, memory_map: bool) -> faiss.Index:
    if memory_map:
        # For flat indexes, FAISS maps the file under this flag and not under IO_FLAG_MMAP.
        return bundle.mapped(VECTORS, lambda file: faiss.read_index(file, faiss.IO_FLAG_MMAP_IFC))
    return faiss.read_index(
        faiss.PyCallbackIOReader(bundle.verified(VECTORS).read, BYTES_AT_A_TIME)  # type: ignore[attr-defined]
    )


def _mapped_table(file: str) -> pa.Table:
    with pa.memory_map(file) as mapped:
        return pa.ipc.open_file(mapped).read_all()


def _table(content: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.py_buffer(content)).read_all()
