"""Caption annotations of COCO, and Karpathy's splits of COCO, Flickr8k and Flickr30k: JSON files with one object."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .annotations import AnnotatedImage, annotated_pairs, by_split, find_images, folders_beside, require_caption
from .columns import shown
from .file_text import SURROGATE, json_values
from .splits import SPLIT_NAMES, files_of_splits
from .tables import TablePairs


KARPATHY_SPLITS = SPLIT_NAMES | {"restval": "train"}
KARPATHY_FOLDERS = (
    "images",
    "Images",
    "flickr30k_images",
    "flickr30k-images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)
MAX_BYTES = 2**32  # of an annotation file; that of COCO's training split has 2**26.5

# An annotation file is one object that begins with one of these; a row of JSON Lines begins with a column.
FIRST_KEY = re.compile(r"\s*\{\s*\"(info|licenses|images|annotations|type|categories|dataset)\"\s*:")


def begins_like_annotations(file: Path) -> bool:
    """Whether a JSON file begins as annotation files do, rather than as a table."""
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        return FIRST_KEY.match(opened.read(4096)) is not None


def load_annotations(file: Path) -> dict[str, Any] | None:
    """
    The object of an annotation file, or `None` for a JSON file of another kind.

    Raises:
        ValueError: for a file that begins like one but is none.
    """
    if not begins_like_annotations(file):
        return None
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{file} has {size:,} bytes, more than the {MAX_BYTES:,} that an annotation file may have.")
    try:
        values = json_values(file)
        content = next(values)
        if next(values, None) is not None:  # JSON Lines
            return None
    except ValueError as error:
        raise ValueError(f"{error} Download it again.") from error
    images, annotations = content.get("images"), content.get("annotations")
    if _are_objects(images) and (
        "sentences" in images[0] or _are_objects(annotations) and "caption" in annotations[0]
    ):
        return content
    if _are_objects(images) and isinstance(annotations, list):
        raise ValueError(f"{file} has annotations without captions. Take the captions_*.json file of the data set.")
    return None


def _are_objects(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and isinstance(values[0], dict)


def read_annotations(file: Path, content: dict[str, Any], image_folder: Path | None) -> dict[str, TablePairs]:
    """
    The pairs of an annotation file by split: those that Karpathy's file names, or else one split, train.

    Raises:
        ValueError: as [`read_coco`] and [`read_karpathy`].
    """
    if "sentences" in content["images"][0]:
        return read_karpathy(file, content, image_folder)
    return {"train": read_coco(file, image_folder, "train", content)}


def read_coco(file: Path, image_folder: Path | None, split: str, content: dict[str, Any] | None = None) -> TablePairs:
    """
    The pairs of a COCO annotation file such as `captions_train2017.json`, whose images lie in `train2017/`.

    Args:
        file (`Path`): the file.
        image_folder (`Path`, *optional*):
            The folder of images, or the folder that holds it. By default `train2017/` beside the file, above it, or in
            `images/` there.
        split (`str`): for messages.
        content (`dict`, *optional*): what the file holds, if it is read already.

    Raises:
        ValueError: for a file of another kind, an annotation that names no image of the file or has no caption, an
            image that stands twice or whose path leads out of its folder, or images that are not found.
    """
    content = content or load_annotations(file)
    if content is None or "annotations" not in content:
        raise ValueError(f"{file} holds no caption annotations of COCO. Download it again.")
    captions: dict[str, list[str]] = {_id(image, "id", file, "image"): [] for image in content["images"]}
    for annotation in content["annotations"]:
        image_id = _id(annotation, "image_id", file, "annotation")
        place = f"{file}: annotation {annotation.get('id')}"
        if image_id not in captions:
            raise ValueError(f"{place} is of image {image_id}, which the file does not name. Remove it.")
        captions[image_id].append(require_caption(annotation.get("caption"), place))
    images = [
        AnnotatedImage(_text(image, "file_name", file, "image"), image_id, captions[image_id])
        for image in content["images"]
        for image_id in [_id(image, "id", file, "image")]
    ]
    name = file.stem.removeprefix("captions_")
    folders = folders_beside(file, (name, f"images/{name}", "images"), image_folder)
    folder = find_images((image.path for image in images), file, folders)
    return annotated_pairs(images, file, folder, split)


def read_karpathy(file: Path, content: dict[str, Any], image_folder: Path | None) -> dict[str, TablePairs]:
    """
    The pairs of Karpathy's split files, `dataset_coco.json`, `dataset_flickr8k.json` and `dataset_flickr30k.json`;
    the split `restval` belongs to train.

    Raises:
        ValueError: for an image without `filename` or `split`, a sentence that is empty or no text, an image that
            stands twice or whose path leads out of its folder, or images that are not found.
    """
    splits = by_split(_karpathy_images(file, content), KARPATHY_SPLITS, file)
    paths = (image.path for image in splits["train"])
    folder = find_images(paths, file, folders_beside(file, KARPATHY_FOLDERS, image_folder))
    return {split: annotated_pairs(images, file, folder, split) for split, images in splits.items()}


def _karpathy_images(file: Path, content: dict[str, Any]) -> Iterator[tuple[str, AnnotatedImage]]:
    for image in content["images"]:
        name = _text(image, "filename", file, "image")
        place = f"{file}: a sentence of image {name!r}"
        sentences = image.get("sentences", [])
        if not _are_objects(sentences) and sentences != []:
            raise ValueError(f"{file}: the sentences of image {name!r} are no list of objects: {shown(sentences)}.")
        captions = [require_caption(_value(sentence, "raw", file, "sentence"), place) for sentence in sentences]
        path = f"{_text(image, 'filepath', file, 'image')}/{name}" if image.get("filepath") else name
        yield _text(image, "split", file, "image"), AnnotatedImage(path, path, captions)


def _value(entry: Any, name: str, file: Path, kind: str) -> Any:
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: {_article(kind)} must be an object, but is {shown(entry)}.")
    if name not in entry:
        raise ValueError(f"{file}: {_article(kind)} has no {name!r}; it has {', '.join(entry)}.")
    return entry[name]


def _text(entry: Any, name: str, file: Path, kind: str) -> str:
    value = _value(entry, name, file, kind)
    if not isinstance(value, str) or not value or SURROGATE.search(value):
        raise ValueError(f"{file}: {name!r} of {_article(kind)} must be text, but is {shown(value)}. Fix it.")
    return value


def _id(entry: Any, name: str, file: Path, kind: str) -> str:
    value = _value(entry, name, file, kind)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(entry, name, file, kind)


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def coco_files(folder: Path) -> dict[str, Path]:
    """COCO's caption files by split, in a folder or in `annotations/` within it; empty if there are none."""
    files = sorted({*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")})
    splits = files_of_splits(files, prefixed=True)
    several = [of_split for of_split in splits.values() if len(of_split) > 1]
    if several:
        names = " and ".join(file.name for file in several[0])
        raise ValueError(f"{folder} holds {names}, which are one split. Keep one, or name a file.")
    if splits and "train" not in splits:
        raise ValueError(f"{folder} holds {files[0].name} but no captions_train file. Name a file to train on it.")
    return {split: of_split[0] for split, of_split in splits.items()}
