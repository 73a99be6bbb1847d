"""The caption files of Flickr8k and Flickr30k, in the forms in which they are spread."""

import re
from collections.abc import Iterator
from pathlib import Path

from .annotations import AnnotatedImage, annotated_pairs, by_split, find_images, folders_beside, require_caption
from .coco import KARPATHY_FOLDERS
from .columns import shown
from .file_rows import separated_lines
from .file_text import parse_json, text_lines
from .splits import SPLIT_NAMES
from .tables import TablePairs


FLICKR_FILES = (
    "results.csv",
    "captions.txt",
    "flickr_annotations_30k.csv",
    "Flickr8k.token.txt",
    "results_20130124.token",
)

# The widely spread results.csv of Flickr30k lacks the second separator of one line, "2199200615.jpg| 4   A dog runs".
NUMBER_AND_COMMENT = re.compile(r"\s*\d+\s+(\S.*)")


def flickr_form(file: Path) -> str | None:
    """Which of the forms a file has, told by its first line: "bars", "comma", "annotations", "token" or `None`."""
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        first = opened.readline(4096).strip()
    if [name.strip() for name in first.split("|")] == ["image_name", "comment_number", "comment"]:
        return "bars"
    if file.suffix.lower() == ".csv":
        return "annotations" if {"raw", "filename", "split"} <= set(first.split(",")) else None
    if [name.strip() for name in first.split(",")] == ["image", "caption"]:
        return "comma"
    return "token" if re.fullmatch(r"[^#\t]+#\d+\t.*", first) else None


def read_flickr(file: Path, form: str, image_folder: Path | None) -> dict[str, TablePairs]:
    """
    The pairs of a caption file: those of its splits, or else one split, train.

    Args:
        file (`Path`): the file.
        form (`str`): as [`flickr_form`] tells.
        image_folder (`Path`, *optional*):
            The folder of images. By default the file's own, or one beside it of a name in which they are spread.

    Raises:
        ValueError: for a line of another form, a caption that is empty, an image whose path leads out of its folder,
            or images that are not found.
    """
    if form == "annotations":
        splits = by_split(_annotations(file), SPLIT_NAMES, file)
    else:
        captions: dict[str, list[str]] = {}
        lines = {"bars": _bars, "comma": _comma, "token": _token}[form]
        for number, name, caption in lines(file):
            captions.setdefault(name.strip(), []).append(require_caption(caption, f"{file}: line {number}").strip())
        splits = {"train": [AnnotatedImage(name, name, texts) for name, texts in captions.items()]}
    paths = (image.path for image in splits["train"])
    names = [*KARPATHY_FOLDERS, "flickr30k_images/flickr30k_images"]
    folder = find_images(paths, file, folders_beside(file, names, image_folder))
    return {split: annotated_pairs(images, file, folder, split) for split, images in splits.items()}


def _bars(file: Path) -> Iterator[tuple[int, str, str]]:
    """Lines `image_name| comment_number| comment`, whose quotation marks mean nothing."""
    for number, line in _lines(file):
        fields = line.split("|", 2)
        if number == 1:
            continue
        merged = NUMBER_AND_COMMENT.fullmatch(fields[1]) if len(fields) == 2 else None
        if len(fields) < 3 and not merged:
            raise ValueError(
                f"{file}: line {number} is not image_name| comment_number| comment: {shown(line)}. Fix it."
            )
        yield number, fields[0], merged[1] if merged else fields[2]


def _token(file: Path) -> Iterator[tuple[int, str, str]]:
    """Lines `image#number<tab>caption`."""
    for number, line in _lines(file):
        name, tab, caption = line.partition("\t")
        if not tab:
            raise ValueError(
                f"{file}: line {number} is not image#number, a tab, and a caption: {shown(line)}. Fix it."
            )
        yield number, name.rpartition("#")[0], caption


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text_lines(file), start=1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _comma(file: Path) -> Iterator[tuple[int, str, str]]:
    rows = separated_lines(file, ",")
    next(rows)
    for line, row in rows:
        if len(row) != 2:
            raise ValueError(f"{file}: line {line} is not image,caption: {shown(row)}. Put it in quotes.")
        yield line, row[0], row[1]


def _annotations(file: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Rows with the captions as a JSON list in `raw`, a `split` and a `filename`."""
    rows = separated_lines(file, ",")
    _, header = next(rows)
    for line, values in rows:
        place = f"{file}: line {line}"
        if len(values) != len(header):
            raise ValueError(f"{place} has {len(values)} fields, but the first line names {len(header)}. Fix it.")
        row = dict(zip(header, values, strict=True))
        captions = parse_json(row["raw"], f"{place}: raw must be a JSON list of captions, but {shown(row['raw'])}")
        captions = captions if isinstance(captions, list) else [captions]
        name = row["filename"]
        yield row["split"], AnnotatedImage(name, name, [require_caption(text, place) for text in captions])
