"""Cached features: the folder that holds them, and what makes them valid.

An `EmbeddingStore` is a folder that the `datasets` library reads as well:

    images/{split}.parquet      image_id (string), image_features (fixed-size list of floats)
    captions/{split}.parquet    image_id (string), caption (string), text_features (fixed-size list of floats),
                                and optionally ambiguity (float), level (int)
    store.json                  fingerprint of the backbone, the processor and the data (absent in hand-made stores)
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch


# What a caption may carry besides itself: its true ambiguity (log of the number of scenes it fits), and its level in a
# hierarchy of captions, 0 being the most general.
CAPTION_COLUMNS = ("ambiguity", "level")

FINGERPRINT_FILE = "store.json"


@dataclass(frozen=True)
class EmbeddingSplit:
    """
    The cached features of one split.

    Args:
        image_ids (`list[str]`): identity of each image.
        image_features (`torch.FloatTensor` of shape `(num_images, dim)`): raw features, float32.
        captions (`list[str]`): the texts.
        text_features (`torch.FloatTensor` of shape `(num_captions, dim)`): raw features, float32.
        text_image_index (`torch.LongTensor` of shape `(num_captions,)`): row of the image each caption belongs to.
        columns (`dict[str, numpy.ndarray]`): those of `CAPTION_COLUMNS` that are there, each `(num_captions,)`.
    """

    image_ids: Sequence[str]
    image_features: torch.Tensor
    captions: Sequence[str]
    text_features: torch.Tensor
    text_image_index: torch.Tensor
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.image_features.shape[1]


class EmbeddingStore:
    """
    A folder of cached features.

    Args:
        path (`str` or `Path`): the folder.

    Raises:
        FileNotFoundError: if the folder or one of its parts does not exist.
        ValueError: if images and captions have different splits, or there is no split at all.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"There is no folder of cached features at {str(self.path)!r}.")
        names = {part: {file.stem for file in (self.path / part).glob("*.parquet")} for part in ("images", "captions")}
        if not names["images"] or names["images"] != names["captions"]:
            raise ValueError(
                f"{str(self.path)!r} is not a folder of cached features: it needs images/SPLIT.parquet and "
                f"captions/SPLIT.parquet for each split, but has images for {sorted(names['images'])} and captions "
                f"for {sorted(names['captions'])}."
            )
        self.splits = sorted(names["images"])

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """What the features were made from, or `None` for a store that does not say."""
        file = self.path / FINGERPRINT_FILE
        return json.loads(file.read_text()) if file.exists() else None

    def split(self, name: str) -> EmbeddingSplit:
        """
        Reads and checks one split.

        Raises:
            KeyError: if there is no such split.
            ValueError: for missing columns, unequal widths, features that are not finite, repeated image ids, captions
                without text or without an image, or fewer than two pairs.
        """
        if name not in self.splits:
            raise KeyError(f"{str(self.path)!r} has no split {name!r}; it has {', '.join(self.splits)}.")
        images = self._read("images", name, ("image_id", "image_features"))
        captions = self._read("captions", name, ("image_id", "caption", "text_features"))
        image_ids = [str(image_id) for image_id in images["image_id"].to_pylist()]
        row_of_image = {image_id: row for row, image_id in enumerate(image_ids)}
        if len(row_of_image) < len(image_ids):
            raise ValueError(f"{self._file('images', name)}: some image_id stands more than once.")
        caption_image_ids = [str(image_id) for image_id in captions["image_id"].to_pylist()]
        without_image = sorted(set(caption_image_ids) - set(row_of_image))
        if without_image:
            raise ValueError(
                f"{self._file('captions', name)}: {len(without_image)} image_id have no image, the first is "
                f"{without_image[0]!r}."
            )
        texts = captions["caption"].to_pylist()
        if not all(text is None or isinstance(text, str) for text in texts):
            raise ValueError(
                f"{self._file('captions', name)}: caption must be text, but is {captions['caption'].type}."
            )
        empty = [row for row, text in enumerate(texts) if not text or not text.strip()]
        if empty:
            raise ValueError(
                f"{self._file('captions', name)}: {len(empty)} captions are empty, the first in row {empty[0]}."
            )
        split = EmbeddingSplit(
            image_ids=image_ids,
            image_features=self._features(images, "image_features", self._file("images", name)),
            captions=texts,
            text_features=self._features(captions, "text_features", self._file("captions", name)),
            text_image_index=torch.tensor([row_of_image[image_id] for image_id in caption_image_ids]),
            columns={
                column: captions[column].to_numpy() for column in CAPTION_COLUMNS if column in captions.column_names
            },
        )
        if split.image_features.shape[1] != split.text_features.shape[1]:
            raise ValueError(
                f"Split {name!r} of {str(self.path)!r}: image features are {split.image_features.shape[1]} wide, text "
                f"features {split.text_features.shape[1]}. Both must come from one backbone."
            )
        if len(texts) < 2:
            raise ValueError(f"{self._file('captions', name)}: {len(texts)} pairs, but contrast needs at least two.")
        return split

    @classmethod
    def write(
        cls, path: str | Path, splits: Mapping[str, EmbeddingSplit], fingerprint: dict[str, Any]
    ) -> "EmbeddingStore":
        """
        Writes a store in place of whatever was at `path`. It is written beside it first, so that an interruption
        leaves either the old store or the new one.
        """
        path = Path(path)
        unfinished = path.with_name(path.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        for part in ("images", "captions"):
            (unfinished / part).mkdir(parents=True)
        for name, split in splits.items():
            caption_image_ids = [split.image_ids[row] for row in split.text_image_index.tolist()]
            images = {"image_id": split.image_ids, "image_features": _list_array(split.image_features)}
            captions = {
                "image_id": caption_image_ids,
                "caption": split.captions,
                "text_features": _list_array(split.text_features),
                **split.columns,
            }
            pq.write_table(pa.table(images), unfinished / "images" / f"{name}.parquet")
            pq.write_table(pa.table(captions), unfinished / "captions" / f"{name}.parquet")
        (unfinished / FINGERPRINT_FILE).write_text(json.dumps(fingerprint, indent=2))
        if path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
        return cls(path)

    def _file(self, part: str, name: str) -> Path:
        return self.path / part / f"{name}.parquet"

    def _read(self, part: str, name: str, columns: tuple[str, ...]) -> pa.Table:
        file = self._file(part, name)
        try:
            table = pq.read_table(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} cannot be read as parquet ({error}). Is it complete?") from error
        missing = [column for column in columns if column not in table.column_names]
        if missing:
            raise ValueError(f"{file} lacks the columns {missing}; it has {table.column_names}.")
        return table

    def _features(self, table: pa.Table, column: str, file: Path) -> torch.Tensor:
        lists = table[column].combine_chunks()
        is_list = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
        if not any(check(lists.type) for check in is_list) or lists.null_count:
            raise ValueError(
                f"{file}: {column} must hold a list of numbers in every row, but is {lists.type} with "
                f"{lists.null_count} rows empty."
            )
        if not pa.types.is_fixed_size_list(lists.type):
            widths = {len(row) for row in lists.to_pylist()}
            if len(widths) != 1:
                raise ValueError(f"{file}: {column} must be as wide in every row, got widths {sorted(widths)}.")
        width = len(lists[0]) if len(lists) else 0
        values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(lists), width)
        broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(broken):
            raise ValueError(
                f"{file}: {column} is NaN or infinite in {len(broken)} of {len(values)} rows, the first is row "
                f"{broken[0]} (image_id {table['image_id'][int(broken[0])].as_py()!r}). Make these features again."
            )
        return torch.from_numpy(values)


def _list_array(features: torch.Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(features.contiguous().numpy().ravel()), features.shape[1])
