"""Pairs in a data set that is streamed: read from its files as they come, and never held as a whole."""

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import datasets
import fsspec
import pyarrow as pa

from .columns import FoundColumns, ImageFolder, captioned_image, require_captions, shown
from .held_out import HashRange
from .identities import picture_key, require_one_picture
from .sources import CaptionedImage, fingerprint_of


@dataclass(frozen=True)
class StreamPairs:
    """
    A split that is streamed, a part per shard of the data set: a [`PairSource`] of unknown size.

    Rows that follow one another and share an image id, or else a path or the same bytes, share an image. An image id
    or path that comes again later in a part is refused; in another part, only the builder of a store can see it. An
    image that has neither id nor path is identified by its part and row.

    Args:
        dataset (`datasets.IterableDataset`): a row per image or per caption.
        folder (`ImageFolder`): where the images' paths lead.
        name (`str`): what messages call the data.
        columns (`FoundColumns`): where the images and captions stand.
        version (`str`): what tells these files from others and from later versions of themselves.
        share (`HashRange`, *optional*): leave out the images that are not in it.
    """

    dataset: datasets.IterableDataset
    folder: ImageFolder
    name: str
    columns: FoundColumns
    version: str
    share: HashRange | None = None
    num_images: int | None = field(default=None, init=False)
    num_captions: int | None = field(default=None, init=False)

    @property
    def num_parts(self) -> int:
        """How many shards the data set has."""
        return self.dataset.num_shards

    def within(self, share: HashRange) -> "StreamPairs":
        """The images of a share only."""
        return replace(self, share=share)

    def fingerprint(self, part: int) -> str:
        """
        SHA-256 of the version of the data set's files, and of what is taken from them. Where the images are local
        files beside them, their sizes and times of change count too, and the rows are read for it.
        """
        content: list[Any] = [self.version, part, self.num_parts, repr(self.columns), repr(self.share)]
        with closing(self._rows(part)) as rows:
            first = next(rows, None)
        if first is not None and _is_local_file(first[1][self.columns.image]):
            content.append(fingerprint_of(self.read(part)))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self, part: int) -> Iterator[CaptionedImage]:
        """
        The images of a part.

        Raises:
            ValueError: for a row without image or image id, with a caption that is empty or no text, an image id or
                path that came before, or rows that cannot be read.
        """
        seen: set[str] = set()
        for (is_path_or_id, identity), group in groupby(self._rows(part), lambda row: self._key(row[0], row[1], part)):
            rows = list(group)
            number, first = rows[0]
            place = self._place(number, part)
            image_id = identity if is_path_or_id else f"{part}-{number}"
            if image_id in seen:
                raise ValueError(
                    f"{place}: image {image_id!r} came before, in rows that are not beside this one. Sort the rows by "
                    "image, or read the data without streaming=."
                )
            if is_path_or_id:
                seen.add(image_id)
            if self.columns.image_id is not None:
                self._require_one_picture(rows, image_id, part)
            if self.share is not None and image_id not in self.share:
                continue
            for row_number, row in rows:
                where = f"{self._place(row_number, part)} (image {image_id!r})"
                require_captions(row[self.columns.caption], where, self.columns.caption)
            columns = (self.columns.caption, *self.columns.others)
            values = {name: [row[name] for _, row in rows] for name in columns}
            content = self._content(first[self.columns.image], place)
            yield captioned_image(image_id, content, values, self.columns.caption, self.folder, place)

    def _require_one_picture(self, rows: list[tuple[int, dict[str, Any]]], image_id: str, part: int) -> None:
        keys = [picture_key(row[self.columns.image], self.folder) for _, row in rows]
        for (number, _), key in zip(rows[1:], keys[1:], strict=True):
            places = self._place(rows[0][0], part), f"row {number}"
            require_one_picture((keys[0], key), places, image_id, self.folder)

    def _rows(self, part: int) -> Generator[tuple[int, dict[str, Any]], None, None]:
        dataset = self.dataset if self.num_parts == 1 else self.dataset.shard(self.num_parts, part)
        try:
            yield from enumerate(dataset)
        except (datasets.exceptions.DatasetsError, pa.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(f"{self._place(None, part)} cannot be read: {error}.") from error

    def _place(self, row: int | None, part: int) -> str:
        shard = "" if self.num_parts == 1 else f", shard {part} of {self.num_parts}"
        return f"{self.name}{shard}" + ("" if row is None else f": row {row}")

    def _key(self, number: int, row: dict[str, Any], part: int) -> tuple[bool, str]:
        """Whether rows are told apart by an id or path, rather than by the image's bytes, and that or their hash."""
        image = row[self.columns.image]
        content = image.get("bytes") if isinstance(image, dict) else image if isinstance(image, bytes) else None
        path = image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None
        if content is None and path is None:
            raise ValueError(
                f"{self._place(number, part)} has no image: {self.columns.image!r} is {shown(image)}. Fix or remove "
                "the row, or name another column with image_column=."
            )
        if self.columns.image_id is not None:
            if row[self.columns.image_id] is None:
                raise ValueError(
                    f"{self._place(number, part)} has no {self.columns.image_id!r}. Fill it in, or remove the column."
                )
            return True, str(row[self.columns.image_id])
        if content is not None:
            return False, hashlib.sha256(content).hexdigest()
        return True, self.folder.identity(str(path))

    def _content(self, image: Any, place: str) -> Any:
        """The image, fetched if it is a file of the data set's repository."""
        path = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else image
        if not isinstance(path, str) or "hf://" not in path:
            return image
        try:
            with fsspec.open(path, "rb") as opened:
                return {"path": path, "bytes": opened.read()}
        except OSError as error:
            raise ValueError(f"{place}: image {path!r} cannot be fetched: {error}.") from error


def _is_local_file(image: Any) -> bool:
    path = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else image
    return isinstance(path, str) and "://" not in path
