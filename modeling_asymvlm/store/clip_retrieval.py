"""Features that clip-retrieval computed: `img_emb/`, `text_emb/` and `metadata/`, a file of each per part."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ..pairs.held_out import HashRange
from ..pairs.splits import SPLITS
from .embedding_store import EmbeddingSplit, EmbeddingStore


IMAGE_ID_COLUMNS = ("image_path", "key", "url")

# The same image under one id may have been embedded in two batches, in half precision.
REPEAT_TOLERANCE = 1e-2


@dataclass(frozen=True)
class FeatureFiles:
    """The files of one part: features of images and texts, a row each, and what the rows are."""

    image: Path
    text: Path
    metadata: Path


class ClipRetrievalFeatures:
    """
    The features in a folder of clip-retrieval, part by part. Feature files are memory-mapped.

    Args:
        folder (`Path`): the folder.
        image_id_column (`str`, *optional*):
            Column of the metadata that tells which rows share an image. By default the first of image_path, key and
            url that is there.

    Attributes:
        num_left_out (`int`): rows without a caption in the parts that were read.

    Raises:
        ValueError: if a file of a part is missing, there is no column of identities, or an identity stands in two
            parts.
    """

    def __init__(self, folder: Path, image_id_column: str | None = None):
        self.files = _feature_files(folder)
        names = pq.read_schema(self.files[0].metadata).names
        if image_id_column is None:
            image_id_column = next((name for name in IMAGE_ID_COLUMNS if name in names), "image_path")
        for column in (image_id_column, "caption"):
            if column not in names:
                raise ValueError(
                    f"{self.files[0].metadata} has no column {column!r}; it has {', '.join(names)}. "
                    + ("It must." if column == "caption" else "Name the right one with image_id_column=.")
                )
        self.image_id_column = image_id_column
        self.num_left_out = 0
        ids = [self._metadata(files)[image_id_column] for files in self.files]
        in_parts = sum(pc.count_distinct(of_part).as_py() for of_part in ids)
        in_all = pc.count_distinct(pa.chunked_array([chunk for of_part in ids for chunk in of_part.chunks])).as_py()
        if in_all < in_parts:
            raise ValueError(
                f"{in_parts - in_all} values of {image_id_column!r} stand in several files of {folder / 'metadata'}, "
                "so that their rows cannot share an image. Name a column that is unique with image_id_column=."
            )

    @property
    def num_parts(self) -> int:
        """How many parts there are."""
        return len(self.files)

    def read(self, part: int) -> EmbeddingSplit:
        """
        The features of a part in float32; rows without a caption are left out and counted.

        Raises:
            ValueError: for features that are no matrix of numbers, are not finite or do not belong together, and for
                rows of one image whose features differ.
        """
        files = self.files[part]
        metadata = self._metadata(files)
        image, text = (_matrix(file) for file in (files.image, files.text))
        if not len(image) == len(text) == len(metadata) or image.shape[1] != text.shape[1]:
            raise ValueError(
                f"{files.image}, {files.text.name} and {files.metadata.name} do not belong together: their shapes are "
                f"{image.shape}, {text.shape} and {len(metadata)} rows."
            )
        has_caption = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(metadata["caption"].fill_null(""))), 0)
        rows = np.flatnonzero(has_caption.to_numpy())
        self.num_left_out += len(metadata) - len(rows)
        kept = metadata.take(pa.array(rows))
        encoded = kept[self.image_id_column].combine_chunks().dictionary_encode()
        image_of_text = encoded.indices.to_numpy().astype(np.int64)
        _, first = np.unique(image_of_text, return_index=True)
        image_features, text_features = _float32(image, rows, files.image), _float32(text, rows, files.text)
        apart = np.abs(image_features - image_features[first][image_of_text]).max(axis=1, initial=0)
        if len(apart) and apart.max() > REPEAT_TOLERANCE:
            row = int(apart.argmax())
            raise ValueError(
                f"{files.image}: row {rows[row]} has other features than an earlier row of the image "
                f"{encoded[row].as_py()!r}. Name the column that tells images apart with image_id_column=."
            )
        return EmbeddingSplit(
            image_ids=encoded.dictionary.to_pylist(),
            image_features=torch.from_numpy(image_features[first]),
            captions=kept["caption"].to_pylist(),
            text_features=torch.from_numpy(text_features),
            text_image_index=torch.from_numpy(image_of_text),
        )

    def _metadata(self, files: FeatureFiles) -> pa.Table:
        columns = [self.image_id_column, "caption"]
        try:
            table = pq.read_table(files.metadata, columns=columns)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{files.metadata} cannot be read as parquet ({error}). Is it complete?") from error
        if table[self.image_id_column].null_count:
            raise ValueError(
                f"{files.metadata}: {self.image_id_column!r} is empty in {table[self.image_id_column].null_count} "
                "rows. Fill it in, or name another column with image_id_column=."
            )
        return pa.table({column: table[column].cast(pa.string()) for column in columns})


def _feature_files(folder: Path) -> list[FeatureFiles]:
    found: dict[str, dict[int, Path]] = {}
    for name, pattern in (("img_emb", "*.npy"), ("text_emb", "*.npy"), ("metadata", "*.parquet")):
        files = (folder / name).glob(pattern)
        found[name] = {int(match[0]): file for file in files if (match := re.search(r"\d+$", file.stem))}
    numbers = sorted(set().union(*found.values()))
    if not numbers:
        raise ValueError(
            f"{str(folder)!r} holds no features of clip-retrieval: img_emb/img_emb_0.npy, text_emb/text_emb_0.npy and "
            "metadata/metadata_0.parquet."
        )
    for name, of_kind in found.items():
        missing = [number for number in numbers if number not in of_kind]
        if missing:
            raise ValueError(
                f"{str(folder / name)!r} lacks number {missing[0]}. Features of images, of texts and metadata are all "
                "needed: let clip-retrieval write them."
            )
    return [FeatureFiles(*(found[name][number] for name in ("img_emb", "text_emb", "metadata"))) for number in numbers]


def _matrix(file: Path) -> np.ndarray:
    try:
        matrix = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Is it complete?") from error
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise ValueError(
            f"{file} must hold a matrix of floating-point numbers, but has {matrix.dtype} {matrix.shape}."
        )
    return matrix


def _float32(matrix: np.ndarray, rows: np.ndarray, file: Path) -> np.ndarray:
    values = np.asarray(matrix[rows], dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise ValueError(f"{file}: row {rows[broken[0]]} is NaN or infinite. Make these features again.")
    return values


# Half precision keeps eleven bits: a unit vector stored in it is a unit vector to less than this.
NORM_TOLERANCE = 5e-3


def is_normalized(features: torch.Tensor) -> bool:
    """Whether every row has unit length, as far as half precision can tell."""
    norms = torch.linalg.vector_norm(features, dim=1)
    return torch.allclose(norms, torch.ones_like(norms), rtol=0, atol=NORM_TOLERANCE)


def convert(
    folder: Path, store: Path, *, image_id_column: str | None = None, held_out_fraction: float = 0.1, seed: int = 0
) -> tuple[EmbeddingStore, int]:
    """
    Writes a store with the splits train, validation and test, which images are in by a hash of their identity.

    Args:
        folder (`Path`): what clip-retrieval wrote.
        store (`Path`): the store to write; nothing may be there yet.
        image_id_column (`str`, *optional*): as for [`ClipRetrievalFeatures`].
        held_out_fraction (`float`, *optional*, defaults to 0.1):
            Expected share of the images in each of validation and test, in (0, 0.5).
        seed (`int`, *optional*, defaults to 0): draws them.

    Returns:
        The store, and how many rows were left out for want of a caption.

    Raises:
        FileExistsError: if there is something at `store`.
        ValueError: as [`ClipRetrievalFeatures`], and if a split would have fewer than two pairs.
    """
    if store.exists():
        raise FileExistsError(f"{str(store)!r} exists already. Name a new folder for the store.")
    if not 0 < held_out_fraction < 0.5:
        raise ValueError(f"held_out_fraction must lie between 0 and 0.5, got {held_out_fraction}.")
    features = ClipRetrievalFeatures(folder, image_id_column)
    bounds = (2 * held_out_fraction, 1.0), (0.0, held_out_fraction), (held_out_fraction, 2 * held_out_fraction)
    shares = {split: HashRange(seed, *of_split) for split, of_split in zip(SPLITS, bounds, strict=True)}
    pieces: dict[str, list[EmbeddingSplit]] = {split: [] for split in SPLITS}
    normalized = True
    for part in range(features.num_parts):
        of_part = features.read(part)
        normalized &= all(is_normalized(values[:]) for values in (of_part.image_features, of_part.text_features))
        for split, share in shares.items():
            pieces[split].append(_images_in(of_part, share))
    splits = {split: _joined(of_split) for split, of_split in pieces.items()}
    for split, joined in splits.items():
        if len(joined.captions) < 2:
            raise ValueError(
                f"The split {split} would have {len(joined.captions)} of the pairs in {str(folder)!r}, but needs at "
                "least two. Bring more, or another held_out_fraction=."
            )
    fingerprint = {"source": "clip-retrieval", "normalized": normalized}
    return EmbeddingStore.write(store, splits, fingerprint), features.num_left_out


def _images_in(split: EmbeddingSplit, share: HashRange) -> EmbeddingSplit:
    images = torch.tensor([image_id in share for image_id in split.image_ids], dtype=torch.bool)
    texts = images[split.text_image_index].nonzero().flatten()
    rows = images.nonzero().flatten()
    return EmbeddingSplit(
        image_ids=[split.image_ids[row] for row in rows.tolist()],
        image_features=split.image_features[rows],
        captions=[split.captions[row] for row in texts.tolist()],
        text_features=split.text_features[texts],
        text_image_index=(images.cumsum(0) - 1)[split.text_image_index[texts]],
    )


def _joined(pieces: list[EmbeddingSplit]) -> EmbeddingSplit:
    starts = np.cumsum([0, *(len(piece.image_ids) for piece in pieces)])
    indices = [piece.text_image_index + int(start) for piece, start in zip(pieces, starts, strict=False)]
    return EmbeddingSplit(
        image_ids=[image_id for piece in pieces for image_id in piece.image_ids],
        image_features=torch.cat([piece.image_features[:] for piece in pieces]),
        captions=[caption for piece in pieces for caption in piece.captions],
        text_features=torch.cat([piece.text_features[:] for piece in pieces]),
        text_image_index=torch.cat(indices),
    )
