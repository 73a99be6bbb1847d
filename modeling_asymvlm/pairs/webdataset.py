"""Pairs in webdataset shards: tar files whose members `key.jpg`, `key.txt` and `key.json` make a sample."""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .columns import CAPTION_COLUMN_NAMES, problem_with, shown
from .held_out import HashRange
from .sources import CaptionedImage
from .splits import files_in_folders_of_splits, files_of_splits


logger = logging.get_logger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class TarPairs:
    """
    A split in webdataset shards, a part per shard: a [`PairSource`] that is read from one end to the other. Members
    are read in place, never extracted, and their names lead nowhere.

    An image is identified by its shard and its key. Its captions are the lines of `key.txt`, which are one caption if
    `key.json` says so, as img2dataset writes it; or else a string or a list in `key.json`. A sample without either,
    with an empty `.txt` or with null is an image without caption, and is left out.

    Args:
        files (`Sequence[Path]`): the shards.
        caption_key (`str`, *optional*):
            Where `key.json` has the captions, which then go before those of `key.txt`. By default the first of
            caption, captions and text that is there.
        share (`HashRange`, *optional*): leave out the images that are not in it, unread.

    Raises:
        ValueError: for a file that does not end as a tar file must.
    """

    files: Sequence[Path]
    caption_key: str | None = None
    share: HashRange | None = None
    num_images: int | None = field(default=None, init=False)
    num_captions: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for file in self.files:
            with file.open("rb") as opened:
                size = opened.seek(0, 2)
                opened.seek(max(0, size - len(END_OF_TAR)))
                if size % tarfile.BLOCKSIZE or opened.read() != END_OF_TAR:
                    raise ValueError(f"{file} is truncated or no tar file. Download or make it again.")

    @property
    def num_parts(self) -> int:
        """How many shards there are."""
        return len(self.files)

    def within(self, share: HashRange) -> "TarPairs":
        """The images of a share only."""
        return replace(self, share=share)

    def fingerprint(self, part: int) -> str:
        """SHA-256 of a shard's name, size and time of change, and of what is taken from it."""
        file = self.files[part]
        state = file.stat()
        content = [file.name, state.st_size, state.st_mtime_ns, self.caption_key, repr(self.share)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self, part: int) -> Iterator[CaptionedImage]:
        """
        The images of a shard.

        Raises:
            ValueError: for a shard that is damaged, and for a sample that has no image, two images, stands in two
                places, or has a caption that is empty or no text.
        """
        file = self.files[part]
        num_without_caption = 0
        for key, members in self._samples(file):
            place = f"{file.name}/{key}"
            images = [name for name in members if name in IMAGE_EXTENSIONS]
            if len(images) != 1:
                raise ValueError(
                    f"{file}: sample {key!r} must hold one image ({', '.join(IMAGE_EXTENSIONS)}), but holds "
                    f"{', '.join(members)}. Fix or remove it."
                )
            captions = self._captions(members, f"{file}: sample {key!r}")
            if captions:
                image_id = f"{file.stem}/{key}"
                yield CaptionedImage(image_id, members[images[0]], captions, {}, f"{place}.{images[0]}")
            else:
                num_without_caption += 1
        if num_without_caption:
            logger.warning(f"{file}: {num_without_caption} images without a caption are left out.")

    def _samples(self, file: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
        """The samples of a shard: their key, and the members that matter by what follows the key's dot."""
        seen: set[str] = set()
        key = ""
        members: dict[str, bytes] = {}
        try:
            with tarfile.open(file, "r:") as archive:
                for member in archive:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    member_key = f"{folder}/{stem}" if folder else stem
                    if not member.isfile() or not stem:
                        continue
                    if member_key != key:
                        if members:
                            yield key, members
                        if member_key in seen:
                            raise ValueError(
                                f"{file}: the members of sample {member_key!r} do not follow one another. Make the "
                                "shard again with its members sorted by name."
                            )
                        seen.add(member_key)
                        key, members = member_key, {}
                    if self.share is not None and f"{file.stem}/{key}" not in self.share:
                        continue
                    extension = extension.lower()
                    if extension in members:
                        raise ValueError(f"{file}: {member.name!r} stands there more than once. Make the shard again.")
                    is_read = extension in (*IMAGE_EXTENSIONS, "txt", "json")
                    members[extension] = archive.extractfile(member).read() if is_read else b""  # type: ignore[union-attr]
                if members:
                    yield key, members
                file_object: Any = archive.fileobj
                file_object.seek(archive.offset)
                if any(file_object.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
                    raise tarfile.ReadError(f"no header at byte {archive.offset}")
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{file} is damaged or truncated: {error}. Download or make it again.") from error

    def _captions(self, members: dict[str, bytes], place: str) -> list[str]:
        try:
            described = json.loads(members["json"].decode("utf-8-sig")) if "json" in members else {}
            text = members.get("txt", b"").decode("utf-8-sig")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: its .txt or .json cannot be read: {error}.") from error
        if not isinstance(described, dict):
            raise ValueError(f"{place}: its .json must hold an object, but is {shown(described)}.")
        names = CAPTION_COLUMN_NAMES if self.caption_key is None else (self.caption_key,)
        value: Any = next((described[name] for name in names if name in described), None)
        # Lines as files have them: the separators of Unicode stand within a caption.
        texts = [line.strip() for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
        if len(texts) > 1 and isinstance(value, str) and value.split() == text.split():
            texts = [text.strip()]
        if texts and self.caption_key is None or value is None or value in ("", []):
            return texts
        problem = problem_with(value)
        if problem is not None:
            raise ValueError(f"{place} has {problem}: its .json says {shown(value)}. Fix or remove it.")
        return value if isinstance(value, list) else [value]


def tars_of_splits(folder: Path) -> dict[str, list[Path]]:
    """
    Tar shards by their names, or by the folders named after splits that they lie in; without names, of train. Empty if
    there are none.

    Raises:
        ValueError: if some names tell a split and others do not, and as [`files_of_splits`].
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        return files_in_folders_of_splits(folder, "*.tar")
    splits = files_of_splits(tars, prefixed=True)
    unnamed = sorted(set(tars) - {file for of_split in splits.values() for file in of_split})
    if splits and unnamed:
        raise ValueError(
            f"{str(folder)!r}: {unnamed[0].name} names no split, but other shards do. Name all of them or none."
        )
    return splits or {"train": tars}
