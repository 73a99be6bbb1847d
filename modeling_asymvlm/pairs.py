"""Images and their captions, from a Hub data set, a local file or an image folder."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageOps

from .data import CAPTION_COLUMNS


FILE_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = ("train", "validation", "test")
CAPTION_COLUMN_NAMES = ("caption", "captions", "text")


@dataclass(frozen=True)
class ImageCaptionPairs:
    """
    Captions and the images they belong to; every image stands once, however many captions it has.

    Args:
        images (`Sequence`): per image a path, or a dictionary with `path` and `bytes` as `datasets` gives it.
        image_ids (`list[str]`): identity of each image.
        captions (`list[str]`): the texts.
        text_image_index (`list[int]`): position in `images` of each caption's image.
        columns (`dict[str, list]`): those of `CAPTION_COLUMNS` that the data have, per caption.
        folder (`Path`): what relative paths are relative to.
    """

    images: Sequence[Any]
    image_ids: list[str]
    captions: list[str]
    text_image_index: list[int]
    columns: dict[str, list]
    folder: Path

    def of_images(self, rows: Sequence[int]) -> "ImageCaptionPairs":
        """The pairs of some images only, in the order of `rows`."""
        new_row = {row: position for position, row in enumerate(rows)}
        kept = [text for text, row in enumerate(self.text_image_index) if row in new_row]
        return replace(
            self,
            images=[self.images[row] for row in rows],
            image_ids=[self.image_ids[row] for row in rows],
            captions=[self.captions[text] for text in kept],
            text_image_index=[new_row[self.text_image_index[text]] for text in kept],
            columns={name: [values[text] for text in kept] for name, values in self.columns.items()},
        )

    def open_image(self, row: int) -> Image.Image:
        """Decodes one image as RGB. Raises `ValueError` with its name if that fails."""
        image = self.images[row]
        try:
            if isinstance(image, dict) and image["bytes"] is not None:
                source: Any = io.BytesIO(image["bytes"])
            else:
                source = self.folder / (image["path"] if isinstance(image, dict) else image)
            with Image.open(source) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except Exception as error:  # for a broken file, Pillow's decoders raise nearly anything
            raise ValueError(f"Image {self.image_name(row)} cannot be read: {error}.") from error

    def image_name(self, row: int) -> str:
        """The image's path, or its identity where it has none."""
        image = self.images[row]
        path = image["path"] if isinstance(image, dict) else image
        return repr(str(path or self.image_ids[row]))


def _load(*arguments: Any, **keywords: Any) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(*arguments, **keywords)
    except (datasets.exceptions.DatasetsError, StopIteration) as error:
        source = keywords.get("data_files") or keywords.get("data_dir") or arguments[0]
        raise ValueError(f"{source} cannot be read: {error or 'it is empty'}.") from error


def load_splits(name_or_path: str, config_name: str | None = None) -> tuple[dict[str, datasets.Dataset], Path]:
    """
    Loads what the data have of the splits train, validation and test.

    Args:
        name_or_path (`str`): a JSON, JSON Lines, CSV or parquet file; a folder of such files named after the splits;
            an image folder with `metadata.jsonl` or `metadata.csv`; or else the name of a Hub data set.
        config_name (`str`, *optional*): configuration of a Hub data set.

    Returns:
        The splits, and the folder that paths of images are relative to.

    Raises:
        ValueError: for a file of another format or a folder in which none of this is found.
    """
    path = Path(name_or_path)
    if path.is_file():
        if path.suffix not in FILE_FORMATS:
            raise ValueError(f"{name_or_path!r}: a data file must end in one of {', '.join(FILE_FORMATS)}.")
        files, folder = {"train": str(path)}, path.parent
    elif path.is_dir():
        if any(path.glob("metadata.*")) or any(path.glob("*/metadata.*")):
            return _with_train(_load("imagefolder", data_dir=str(path)), name_or_path), path
        files = {file.stem: str(file) for file in sorted(path.iterdir()) if file.suffix in FILE_FORMATS}
        files, folder = {name: files[name] for name in SPLITS if name in files}, path
        if "train" not in files:
            raise ValueError(
                f"The folder {name_or_path!r} holds neither metadata.jsonl nor a train.json, .jsonl, .csv or "
                ".parquet file. A folder of cached features goes to --embeddings."
            )
    else:
        return _with_train(_load(name_or_path, config_name), name_or_path), Path()
    file_format = FILE_FORMATS[Path(files["train"]).suffix]
    return dict(_load(file_format, data_files=files)), folder


def _with_train(loaded: datasets.DatasetDict, name: str) -> dict[str, datasets.Dataset]:
    if "train" not in loaded:
        raise ValueError(f"The data {name!r} have no split train; they have {', '.join(loaded)}.")
    return {split: loaded[split] for split in SPLITS if split in loaded}


def read_pairs(
    dataset: datasets.Dataset,
    folder: Path,
    *,
    image_column: str = "image",
    caption_column: str | None = None,
    image_id_column: str = "image_id",
) -> ImageCaptionPairs:
    """
    Collects the images and captions of a split; rows that share an image id, or else a file or its bytes, share an
    image.

    Args:
        dataset (`datasets.Dataset`): a row per image or per caption.
        folder (`Path`): what relative paths are relative to.
        image_column (`str`, *optional*, defaults to `"image"`): images, or their paths.
        caption_column (`str`, *optional*):
            A string or a list of strings per row. By default the first of caption, captions and text that is there.
        image_id_column (`str`, *optional*, defaults to `"image_id"`): may be missing.

    Raises:
        ValueError: for a missing column, a missing image id, a caption that is empty or no text, or fewer than two
            pairs.
    """
    if caption_column is None:
        caption_column = next((name for name in CAPTION_COLUMN_NAMES if name in dataset.column_names), "caption")
    for option, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in dataset.column_names:
            raise ValueError(
                f"The data have no column {column!r}; they have {', '.join(dataset.column_names)}. Name the right one "
                f"with --{option}."
            )
    if isinstance(dataset.features[image_column], datasets.Image):
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    image_rows: list[int] = []
    row_of_key: dict[str, int] = {}
    image_ids: list[str] = []
    captions: list[str] = []
    text_image_index: list[int] = []
    columns: dict[str, list] = {name: [] for name in CAPTION_COLUMNS if name in dataset.column_names}
    has_ids = image_id_column in dataset.column_names
    key_column = image_id_column if has_ids else image_column
    for row, example in enumerate(dataset.select_columns([caption_column, *columns, key_column])):
        if has_ids and example[key_column] is None:
            raise ValueError(f"Row {row} has no {image_id_column!r}. Fill it in, or remove the column.")
        key = str(example[key_column]) if has_ids else _image_key(example[key_column], row)
        if key not in row_of_key:
            row_of_key[key] = len(image_rows)
            image_rows.append(row)
            image_ids.append(key)
        texts = example[caption_column]
        texts = texts if isinstance(texts, list) else [texts]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            problem = "no text" if any(text and not isinstance(text, str) for text in texts) else "an empty caption"
            raise ValueError(
                f"Row {row} (image {key!r}) has {problem}: {caption_column!r} is {example[caption_column]!r}. Mend or "
                "remove the row, or name another column with --caption_column."
            )
        captions += texts
        text_image_index += [row_of_key[key]] * len(texts)
        for name, values in columns.items():
            values += [example[name]] * len(texts)
    if len(captions) < 2:
        raise ValueError(f"The data hold {len(captions)} pairs, but a contrastive objective needs at least two.")
    return ImageCaptionPairs(
        images=dataset.select(image_rows)[image_column],
        image_ids=image_ids,
        captions=captions,
        text_image_index=text_image_index,
        columns=columns,
        folder=folder,
    )


def _image_key(image: Any, row: int) -> str:
    """What tells images apart: the bytes where they are embedded, whose path is a bare file name, else the path."""
    if isinstance(image, dict):
        return hashlib.sha256(image["bytes"]).hexdigest() if image["bytes"] is not None else str(image["path"])
    return f"row-{row}" if image is None else str(image)


def with_held_out_splits(
    splits: dict[str, ImageCaptionPairs], fraction: float, seed: int
) -> dict[str, ImageCaptionPairs]:
    """
    Adds what is missing of validation and test, each a `fraction` of the training images drawn by `seed`.

    Raises:
        ValueError: if the training images do not suffice for two in every split.
    """
    missing = [name for name in SPLITS[1:] if name not in splits]
    if not missing:
        return splits
    train = splits["train"]
    num_held_out = max(2, round(fraction * len(train.images)))
    if len(train.images) - len(missing) * num_held_out < 2:
        raise ValueError(
            f"{len(train.images)} training images are too few to hold out {' and '.join(missing)} splits of "
            f"{num_held_out}: bring your own splits, more images, or a smaller held_out_fraction."
        )
    order = np.random.default_rng(seed).permutation(len(train.images)).tolist()
    completed = dict(splits)
    for name in missing:
        completed[name] = train.of_images(sorted(order[:num_held_out]))
        order = order[num_held_out:]
    completed["train"] = train.of_images(sorted(order))
    return completed
