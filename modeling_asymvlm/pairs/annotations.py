"""Captions in annotation files beside folders of images: what their readers share."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
from transformers.utils import logging

from .columns import ImageFolder, problem_with, shown
from .tables import TablePairs


logger = logging.get_logger(__name__)

# How many images may be missing before a folder is taken for another one.
IMAGES_LOOKED_FOR = 10


class AnnotatedImage(NamedTuple):
    """
    An image that an annotation file names.

    Args:
        path (`str`): relative to the folder of images.
        image_id (`str`): its identity.
        captions (`Sequence[str]`): none where the file has none.
    """

    path: str
    image_id: str
    captions: Sequence[str]


def annotated_pairs(images: Sequence[AnnotatedImage], file: Path, folder: ImageFolder, split: str) -> TablePairs:
    """
    The pairs of a split; images without captions are left out and counted.

    Args:
        images (`Sequence[AnnotatedImage]`): what the file names.
        file (`Path`): the annotation file, for messages.
        folder (`ImageFolder`): where the images lie.
        split (`str`): for messages.

    Raises:
        ValueError: if an image stands twice, two are one file, or fewer than two pairs are there.
    """
    ids: set[str] = set()
    id_of: dict[str, str] = {}
    for image in images:
        if image.image_id in ids:
            raise ValueError(f"{file}: image {image.image_id!r} stands there more than once. Remove one.")
        ids.add(image.image_id)
        other = id_of.setdefault(folder.identity(image.path), image.image_id)
        if other != image.image_id:
            raise ValueError(
                f"{file}: images {other!r} and {image.image_id!r} are one picture, {image.path!r}. Join their "
                "captions, or remove one."
            )
    captioned = [image for image in images if image.captions]
    if len(captioned) < len(images):
        logger.warning(
            f"{file}, split {split}: {len(images) - len(captioned)} of {len(images)} images have no caption and are "
            "left out."
        )
    table = {
        "image": [image.path for image in captioned],
        "image_id": [image.image_id for image in captioned],
        "caption": [list(image.captions) for image in captioned],
    }
    if not captioned:
        raise ValueError(f"{file}, split {split}: no image has a caption.")
    return TablePairs(datasets.Dataset.from_dict(table), folder, f"{file}, split {split}")


def require_caption(caption: object, place: str) -> str:
    """Raises `ValueError` that names the place if this is no caption."""
    problem = "no text" if isinstance(caption, list) else problem_with(caption)
    if problem is not None:
        raise ValueError(f"{place} has {problem}: {shown(caption)}. Fix or remove it.")
    return str(caption)


def find_images(paths: Iterable[str], file: Path, candidates: Sequence[Path]) -> ImageFolder:
    """
    The first folder in which some of the first images lie.

    Args:
        paths (`Iterable[str]`): of the images, relative to the folder.
        file (`Path`): the annotation file, for the message.
        candidates (`Sequence[Path]`): where to look.

    Raises:
        ValueError: if there is none.
    """
    first = [path for path, _ in zip(paths, range(IMAGES_LOOKED_FOR), strict=False)]
    for folder in candidates:
        if any((folder / path).is_file() for path in first):
            return ImageFolder(folder, [folder])
    looked_in = ", ".join(repr(str(folder)) for folder in candidates)
    raise ValueError(
        f"{file}: its images, such as {first[0] if first else 'none'!r}, are not in {looked_in}. Name the folder that "
        "holds them with image_folder=."
    )


def folders_beside(file: Path, names: Sequence[str], image_folder: Path | None) -> list[Path]:
    """The folder that the user names and those within it, or else those of these names beside the file or above."""
    parents = [image_folder] if image_folder is not None else [file.parent, file.parent.parent]
    return [parent / name for parent in parents for name in ("", *names)]


def by_split(images: Iterable[tuple[str, AnnotatedImage]], names: Mapping[str, str], file: Path) -> dict[str, list]:
    """
    Images by the split that the file gives them.

    Args:
        images (`Iterable`): what the file calls the split, and the image.
        names (`Mapping`): which of our splits that is.
        file (`Path`): the annotation file, for the message.

    Raises:
        ValueError: for a split of another name, or if none is train.
    """
    found: dict[str, list[AnnotatedImage]] = {}
    for name, image in images:
        if name not in names:
            raise ValueError(
                f"{file}: image {image.image_id!r} is in a split {name!r}; known are {', '.join(names)}. Rename it."
            )
        found.setdefault(names[name], []).append(image)
    if "train" not in found:
        raise ValueError(f"{file}: no image is in the split train.")
    return found
