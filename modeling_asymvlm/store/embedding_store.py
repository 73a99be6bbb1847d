"""Cached features: the folder that holds them, and what makes them valid.

An `EmbeddingStore` is a folder that the `datasets` library reads as well:

    images/{split}-00000-of-00002.parquet      image_id (string), image_features (fixed-size list of floats)
    captions/{split}-00000-of-00002.parquet    image_id (string), caption (string), text_features (fixed-size list of
                                               floats), and optionally ambiguity (float), level (int)
    store.json                                 fingerprint of the backbone, the processor and the data; size and
                                               SHA-256 of each file (absent in hand-made stores)

A split may also be one file, `{split}.parquet`. Each image stands once, however many captions it has.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..pairs.sources import CAPTION_COLUMNS
from ..utils.disk_errors import disk_errors_named
from ..utils.durable_files import find_folder, is_left_aside, writing_folder
from .feature_matrix import STORED_AS, FeatureMatrix
from .file_states import check_states, states_of
from .manifest import MANIFEST_FILE, check_is_store, read_manifest, write_manifest
from .parquet import TextColumn, decoded_features, features_in_place, open_parquet, read_column, rows_of_images
from .shards import FEATURE_COLUMNS, ROWS_PER_GROUP, ShardWriter, shards_of_splits
from .verification import (
    check_captions,
    check_features,
    check_image_ids,
    damage_of,
    is_verified,
    record_verified,
    verified_states,
)


SECONDS_BETWEEN_LOOKS = 0.05
LOOKS = 40


@dataclass(frozen=True)
class EmbeddingSplit:
    """
    The cached features of one split.

    Args:
        image_ids (`Sequence[str]`): identity of each image.
        image_features (`torch.FloatTensor` or [`FeatureMatrix`] of shape `(num_images, dim)`): raw features.
        captions (`Sequence[str]`): the texts.
        text_features (`torch.FloatTensor` or [`FeatureMatrix`] of shape `(num_captions, dim)`): raw features.
        text_image_index (`torch.LongTensor` of shape `(num_captions,)`): row of the image each caption belongs to.
        columns (`dict[str, numpy.ndarray]`): those of `CAPTION_COLUMNS` that are there, each `(num_captions,)`.
    """

    image_ids: Sequence[str]
    image_features: torch.Tensor | FeatureMatrix
    captions: Sequence[str]
    text_features: torch.Tensor | FeatureMatrix
    text_image_index: torch.Tensor
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.image_features.shape[1]


class EmbeddingStore:
    """
    A folder of cached features.

    What [`write`] or the builder of [`cached_features`] wrote stays on the disk: rows of features are read where they
    lie, texts are loaded when they are asked for. Files from elsewhere are decoded into memory. A store that is
    replaced meanwhile is read as it was or not at all: what was not read yet raises `ValueError`, and says so.

    Args:
        path (`str` or `Path`): the folder.

    Raises:
        FileNotFoundError: if the folder or one of its parts does not exist.
        ValueError: if images and captions have different splits, there is no split at all, a shard is missing, or
            `store.json` is damaged or of another format.
        OSError: if a file may not be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()  # which stays where it is when the working directory changes
        for look in range(LOOKS):
            find_folder(self.path, MANIFEST_FILE)
            try:
                with disk_errors_named(self.path):
                    self.manifest = read_manifest(self.path)
                    self._look_at_files(str(Path(path)))
                    self._check_current()
                    return
            except (OSError, ValueError):
                if look == LOOKS - 1 or not (is_left_aside(self.path) or self._is_replaced()):
                    raise
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _look_at_files(self, given: str) -> None:
        if not self.path.is_dir():
            raise FileNotFoundError(f"There is no folder of cached features at {given!r}.")
        self._files = {part: shards_of_splits(self.path / part) for part in FEATURE_COLUMNS}
        names = {part: set(files) for part, files in self._files.items()}
        if not names["images"] or names["images"] != names["captions"]:
            raise ValueError(
                f"{str(self.path)!r} is not a folder of cached features: it needs images/SPLIT.parquet and "
                f"captions/SPLIT.parquet for each split, but has images for {sorted(names['images'])} and captions "
                f"for {sorted(names['captions'])}."
            )
        self.splits = sorted(names["images"])

    def _is_replaced(self) -> bool:
        return read_manifest(self.path) != self.manifest

    def _check_current(self) -> None:
        if self._is_replaced():
            raise ValueError(f"The store {str(self.path)!r} was replaced after it was opened: open it again.")

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """What the features were made from, or `None` for a store that does not say."""
        return self.manifest.get("fingerprint")

    @property
    def backbone_fingerprint(self) -> dict[str, Any] | None:
        """Its [`~fingerprint.backbone_fingerprint`], or `None` for a store that does not say."""
        return self.manifest.get("backbone_fingerprint")

    @property
    def broken_images(self) -> list[str]:
        """Names of the images that were left out when the features were made."""
        return [name for shard in self.manifest.get("shards", []) for name in shard.get("broken_images", [])]

    def split(self, name: str) -> EmbeddingSplit:
        """
        Opens one split. It is checked the first time, and again only after one of its files has changed: what was
        found good is noted in `.verified.json`.

        Raises:
            KeyError: if there is no such split.
            ValueError: for a file that is not as it was written, missing columns, unequal widths, features that are
                not finite, repeated image ids, captions without text or without an image, or fewer than two pairs.
        """
        if name not in self.splits:
            raise KeyError(f"{str(self.path)!r} has no split {name!r}; it has {', '.join(self.splits)}.")
        verified = verified_states(self.path)
        files = chain.from_iterable(self._files[part][name] for part in FEATURE_COLUMNS)
        with self._replacement_told():
            if all(is_verified(self.path, file, verified) for file in files):
                return self._open(name)
            return self._verify(name)

    def verify(self, name: str) -> EmbeddingSplit:
        """Opens one split after checking all of it, as [`split`] does the first time, whatever was noted before."""
        with self._replacement_told():
            return self._verify(name)

    @contextmanager
    def _replacement_told(self) -> Iterator[None]:
        """Whatever goes wrong while a store is replaced means that it is: half of the files may be new."""
        try:
            yield
        except (OSError, ValueError):
            self._check_current()
            raise

    def _verify(self, name: str) -> EmbeddingSplit:
        images, captions = (self._files[part][name] for part in FEATURE_COLUMNS)
        self._check_current()
        states = states_of([*images, *captions])
        for shard in self._shards(name):
            for part in FEATURE_COLUMNS:
                damage = damage_of(self.path / shard[part]["file"], shard[part])
                if damage is not None:
                    raise ValueError(
                        f"{self.path / shard[part]['file']} {damage}. Restore it, or make the features again; if it "
                        f"was changed on purpose, remove {MANIFEST_FILE}."
                    )
        self._check_columns(name)
        check_image_ids(images)
        split = self._open(name)
        check_captions(captions)
        check_features(images, "image_features", split.image_features)
        check_features(captions, "text_features", split.text_features)
        record_verified(self.path, states)
        return split

    def _shards(self, name: str) -> list[dict[str, Any]]:
        """What the manifest says of the files of a split; nothing for files from elsewhere."""
        self._check_current()
        shards = [shard for shard in self.manifest.get("shards", []) if shard["split"] == name]
        for part in FEATURE_COLUMNS:
            listed = {shard[part]["file"] for shard in shards}
            found = {f"{part}/{file.name}" for file in self._files[part][name]}
            if shards and listed != found:
                raise ValueError(
                    f"{str(self.path)!r}: the files of split {name!r} are not those that {MANIFEST_FILE} lists, such "
                    f"as {min(listed ^ found)}. Restore them, or make the features again."
                )
        return shards

    def _check_columns(self, name: str) -> None:
        for part, texts in (("images", ["image_id"]), ("captions", ["image_id", "caption"])):
            for file in self._files[part][name]:
                open_parquet(file, [*texts, FEATURE_COLUMNS[part]])

    def _open(self, name: str) -> EmbeddingSplit:
        images, captions = (self._files[part][name] for part in FEATURE_COLUMNS)
        shards = self._shards(name)
        states = states_of([*images, *captions])
        groups = [([self.path / shard["images"]["file"]], [self.path / shard["captions"]["file"]]) for shard in shards]
        read = features_in_place if shards else decoded_features
        image_features, text_features = (read(self._files[part][name], FEATURE_COLUMNS[part]) for part in self._files)
        if image_features.shape[1] != text_features.shape[1]:
            raise ValueError(
                f"Split {name!r} of {str(self.path)!r}: image features are {image_features.shape[1]} wide, text "
                f"features {text_features.shape[1]}. Both must come from one backbone."
            )
        if len(text_features) < 2:
            raise ValueError(f"{captions[0]}: {len(text_features)} pairs, but contrast needs at least two.")
        split = EmbeddingSplit(
            image_ids=TextColumn(images, "image_id", len(image_features)),
            image_features=image_features,
            captions=TextColumn(captions, "caption", len(text_features)),
            text_features=text_features,
            text_image_index=rows_of_images(groups or [(images, captions)]),
            columns={
                column: read_column(captions, column, CAPTION_COLUMNS[column]).to_numpy()
                for column in CAPTION_COLUMNS
                if any(column in open_parquet(file, ()).schema_arrow.names for file in captions)
            },
        )
        self._check_current()
        check_states(states)
        return split

    @classmethod
    def write(
        cls, path: str | Path, splits: Mapping[str, EmbeddingSplit], fingerprint: dict[str, Any]
    ) -> "EmbeddingStore":
        """
        Writes a store in place of one that was at `path` before. It is written beside it first, so that an
        interruption leaves either the old store or the new one. Features are stored in the dtype they have: float32,
        float16 or bfloat16.

        Raises:
            FileExistsError: if anything but a store with its `store.json` or an empty folder is at `path`.
            OSError: if the disk is full or refuses.
        """
        with writing_folder(Path(path), check_is_store, MANIFEST_FILE) as folder:
            for part in FEATURE_COLUMNS:
                (folder / part).mkdir()
            shards = [
                {"split": name, **write_shard(folder, f"{name}.parquet", [split], *_layout(split))}
                for name, split in splits.items()
            ]
            write_manifest(folder, fingerprint=fingerprint, shards=shards)
        return cls(path)


def _layout(split: EmbeddingSplit) -> tuple[int, torch.dtype]:
    dtype = torch.promote_types(split.image_features.dtype, split.text_features.dtype)
    return split.dim, dtype if dtype in STORED_AS else torch.float32


def write_shard(
    folder: Path,
    file_name: str,
    blocks: Iterable[EmbeddingSplit],
    dim: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """
    Writes images and captions, block after block, to `images/{file_name}` and `captions/{file_name}` in a folder.

    Args:
        folder (`Path`): with folders `images` and `captions`.
        file_name (`str`): of both files.
        blocks (`Iterable[EmbeddingSplit]`): each with all captions of its images, and all with the same columns.
        dim (`int`): width of the features.
        dtype (`torch.dtype`): of the features on the disk: float32, float16 or bfloat16.

    Returns:
        For `images` and `captions`, the `file`, and its `rows`, `size` and `sha256`.
    """
    files = {part: f"{part}/{file_name}" for part in FEATURE_COLUMNS}
    blocks = iter(blocks)
    first_block = list(islice(blocks, 1))
    columns = [name for block in first_block for name in block.columns]
    with (
        ShardWriter(folder / files["images"], "images", dim, dtype) as images,
        ShardWriter(folder / files["captions"], "captions", dim, dtype, columns) as captions,
    ):
        for block in chain(first_block, blocks):
            image_ids = np.array(block.image_ids, dtype=object)
            image_of_caption = block.text_image_index.numpy()
            first = 0
            for features in block.image_features.split(ROWS_PER_GROUP):
                images.write(features, {"image_id": image_ids[first : first + len(features)]})
                first += len(features)
            first = 0
            for features in block.text_features.split(ROWS_PER_GROUP):
                rows = slice(first, first + len(features))
                texts = {"image_id": image_ids[image_of_caption[rows]], "caption": block.captions[rows]}
                captions.write(features, {**texts, **{name: block.columns[name][rows] for name in columns}})
                first += len(features)
        return {
            part: {"file": files[part], **writer.finish()}
            for part, writer in (("images", images), ("captions", captions))
        }
