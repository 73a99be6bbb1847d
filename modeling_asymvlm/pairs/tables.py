"""Pairs in a table: rows of images and captions, grouped by image and cut into parts."""

import copy
from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import (
    DEFAULT_COLUMNS,
    IRREGULAR_PATH,
    ImageFolder,
    PairColumns,
    captioned_image,
    require_captions,
    require_number,
)
from .identities import picture_key, require_one_picture
from .sources import CaptionedImage, fingerprint_of


IMAGES_PER_PART = 8192

# Rows in memory at a time; pictures that lie in the table are in memory with them.
ROWS_PER_BATCH = 256


class TablePairs:
    """
    A split whose rows lie in an Arrow table: a [`PairSource`] that knows its size. Rows that share an image id, or
    else a file or its bytes, share an image; images keep the order in which they first stand.

    Memory: some 16 bytes a row and the identities; captions and images stay in the table.

    Args:
        dataset (`datasets.Dataset`): a row per image or per caption.
        folder (`ImageFolder`): where the images' paths lead.
        name (`str`): what messages call the data.
        columns (`PairColumns`, *optional*): where the images and captions stand.
        images_per_part (`int`, *optional*, defaults to 8192): size of all parts but the last.

    Raises:
        ValueError: for a missing column, a row without image or image id, a caption that is empty or no text, rows of
            one image id whose pictures differ, or fewer than two pairs.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        folder: ImageFolder,
        name: str,
        columns: PairColumns = DEFAULT_COLUMNS,
        images_per_part: int = IMAGES_PER_PART,
    ):
        self.name = name
        self.folder = folder
        self.columns = columns.found_in(dataset.column_names, name)
        self.images_per_part = images_per_part
        self._rows_of_pairs = dataset.with_format("arrow")
        self._has_content_ids = self.columns.image_id is None
        try:
            keys = self._keys()
            captions_per_row = self._captions_per_row(keys)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise ValueError(f"{name} cannot be read as text: {error}. Save it as UTF-8.") from error
        if captions_per_row.sum() < 2:
            raise ValueError(
                f"{name}: the data hold {captions_per_row.sum()} pairs, but a contrastive objective needs at least "
                "two."
            )
        encoded = keys.dictionary_encode()
        image_of_row = encoded.indices.to_numpy()
        self._image_ids = encoded.dictionary
        self._rows = np.argsort(image_of_row, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(image_of_row))])
        self._captions_per_image = np.bincount(image_of_row, weights=captions_per_row).astype(np.int64)
        self._images = np.arange(len(self._image_ids))
        if self.columns.image_id is not None:
            self._require_one_picture_each(image_of_row)
        for name in self.columns.others:
            self._require_numbers(name)

    @property
    def num_images(self) -> int:
        """Images in all parts."""
        return len(self._images)

    @property
    def num_captions(self) -> int:
        """Captions in all parts."""
        return int(self._captions_per_image[self._images].sum())

    @property
    def num_parts(self) -> int:
        """How many parts there are."""
        return -(-self.num_images // self.images_per_part)

    def of_images(self, positions: Sequence[int] | np.ndarray) -> "TablePairs":
        """The pairs of some images only, in the order of `positions`."""
        selected = copy.copy(self)
        selected._images = self._images[np.asarray(positions, dtype=np.int64)]
        return selected

    def fingerprint(self, part: int) -> str:
        """SHA-256 of a part, as [`fingerprint_of`]."""
        return fingerprint_of(self._read(part, with_content=not self._has_content_ids))

    def read(self, part: int) -> Iterator[CaptionedImage]:
        """The images of a part. Raises `ValueError` for a path that leads where no image may lie."""
        return self._read(part, with_content=True)

    def _read(self, part: int, with_content: bool) -> Iterator[CaptionedImage]:
        texts_of = self._rows_of_pairs.select_columns([self.columns.caption, *self.columns.others])
        images_of = self._rows_of_pairs.select_columns([self.columns.image])
        of_part = self._images[part * self.images_per_part : (part + 1) * self.images_per_part]
        for start in range(0, len(of_part), ROWS_PER_BATCH):
            images = of_part[start : start + ROWS_PER_BATCH]
            rows = [self._rows[self._starts[image] : self._starts[image + 1]] for image in images]
            texts = texts_of[np.concatenate(rows)].to_pydict()
            first_rows = np.array([of_image[0] for of_image in rows])
            contents = images_of[first_rows][self.columns.image].to_pylist() if with_content else [b""] * len(images)
            position = 0
            for image, of_image, content in zip(images.tolist(), rows, contents, strict=True):
                taken = slice(position, position := position + len(of_image))
                image_id = self._image_ids[image].as_py()
                place = f"{self.name}: row {of_image[0]}"
                yield captioned_image(
                    image_id,
                    content,
                    {name: values[taken] for name, values in texts.items()},
                    self.columns.caption,
                    self.folder,
                    place,
                )

    def _keys(self) -> pa.LargeStringArray:
        """What tells images apart, per row."""
        column = self.columns.image
        id_column = self.columns.image_id
        keys = [] if id_column is None else self._given_ids(id_column).chunks
        kind = self._rows_of_pairs.features.arrow_schema.field(column).type
        if not _holds_images(kind):
            raise ValueError(
                f"{self.name}: {column!r} must hold images or their paths, but is {kind}. Name another column with "
                "image_column=."
            )
        row = 0
        batch_size = IMAGES_PER_PART if _is_text(kind) else ROWS_PER_BATCH
        for batch in self._rows_of_pairs.select_columns([column]).iter(batch_size=batch_size):
            images = batch[column].combine_chunks()
            missing = pc.index(_is_missing(images), True).as_py()
            if missing >= 0:
                raise ValueError(
                    f"{self.name}: row {row + missing} has no image: {column!r} is empty. Fill it in, or remove the "
                    "row."
                )
            if id_column is None:
                keys.append(self._image_keys(images))
            row += len(images)
        return pa.chunked_array(keys, pa.large_string()).combine_chunks()

    def _given_ids(self, column: str) -> pa.ChunkedArray:
        ids = self._rows_of_pairs.select_columns([column])[:][column]
        missing = pc.index(pc.equal(ids, "").fill_null(True) if _is_text(ids.type) else pc.is_null(ids), True).as_py()
        if missing >= 0:
            raise ValueError(f"{self.name}: row {missing} has no {column!r}. Fill it in, or remove the column.")
        if not (pa.types.is_integer(ids.type) or _is_text(ids.type)):
            raise ValueError(
                f"{self.name}: {column!r} must hold text or whole numbers, but is {ids.type}. Name another column "
                "with image_id_column=."
            )
        return ids.cast(pa.large_string())

    def _require_one_picture_each(self, image_of_row: np.ndarray) -> None:
        """Raises `ValueError` for two rows of one image id whose pictures differ."""
        repeated = np.flatnonzero(np.diff(self._starts)[image_of_row] > 1)
        first_rows = self._rows[self._starts[:-1]]
        images_of = self._rows_of_pairs.select_columns([self.columns.image])
        key_of_first: dict[int, str] = {}
        for start in range(0, len(repeated), ROWS_PER_BATCH):
            rows = repeated[start : start + ROWS_PER_BATCH]
            keys = self._image_keys(images_of[rows][self.columns.image].combine_chunks()).to_pylist()
            for row, key in zip(rows.tolist(), keys, strict=True):
                image = int(image_of_row[row])
                places = f"{self.name}: row {first_rows[image]}", f"row {row}"
                keys_of_both = key_of_first.setdefault(image, key), key
                require_one_picture(keys_of_both, places, self._image_ids[image].as_py(), self.folder)

    def _require_numbers(self, name: str) -> None:
        """Raises `ValueError` for a value of a column of `CAPTION_COLUMNS` that is no number."""
        row = 0
        for batch in self._rows_of_pairs.select_columns([name]).iter(batch_size=IMAGES_PER_PART):
            values = batch[name].combine_chunks()
            if not pa.types.is_integer(values.type) or values.null_count:
                for position, value in enumerate(values.to_pylist()):
                    require_number(value, f"{self.name}: row {row + position}", name)
            row += len(values)

    def _image_keys(self, images: pa.Array) -> pa.LargeStringArray:
        """The bytes' SHA-256 where they are in the table, for the path beside them is a bare file name; else the
        path."""
        if pa.types.is_struct(images.type) and images.field("bytes").null_count == len(images):
            images = images.field("path")
        if _is_text(images.type):
            self._has_content_ids = False
            irregular = pc.match_substring_regex(images, IRREGULAR_PATH.pattern)
            identities = [self.folder.identity(path) for path in images.filter(irregular).to_pylist()]
            as_written = images.cast(pa.large_string())
            return pc.replace_with_mask(as_written, irregular, pa.array(identities, pa.large_string()))
        pictures = images.to_pylist()
        self._has_content_ids &= all(not isinstance(one, dict) or one["bytes"] is not None for one in pictures)
        return pa.array([picture_key(one, self.folder) for one in pictures], pa.large_string())

    def _captions_per_row(self, keys: pa.LargeStringArray) -> np.ndarray:
        counts = []
        row = 0
        column = self.columns.caption
        for batch in self._rows_of_pairs.select_columns([column]).iter(batch_size=IMAGES_PER_PART):
            captions = batch[column].combine_chunks()
            is_list = isinstance(captions, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray)
            texts = captions.flatten() if is_list else captions
            lengths = pc.list_value_length(captions) if is_list else pa.array(np.ones(len(captions), dtype=np.int32))
            blank = (
                not _is_text(texts.type) or pc.any(pc.equal(pc.utf8_trim_whitespace(texts).fill_null(""), "")).as_py()
            )
            if blank or captions.null_count or not pc.all(pc.greater(lengths, 0)).as_py():
                for position, caption in enumerate(captions.to_pylist()):
                    place = f"{self.name}: row {row + position} (image {keys[row + position].as_py()!r})"
                    require_captions(caption, place, column)
            counts.append(lengths.to_numpy())
            row += len(captions)
        return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int32)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _holds_images(kind: pa.DataType) -> bool:
    """Whether a type holds paths, bytes, or both as `datasets` stores an image."""
    if pa.types.is_struct(kind):
        return {kind.field(position).name for position in range(kind.num_fields)} >= {"bytes", "path"}
    return _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_missing(images: pa.Array) -> pa.BooleanArray:
    if pa.types.is_struct(images.type):
        empty = pc.and_(pc.is_null(images.field("bytes")), pc.is_null(images.field("path")))
        return pc.or_(pc.is_null(images), empty)
    return pc.equal(images, "").fill_null(True) if _is_text(images.type) else pc.is_null(images)
