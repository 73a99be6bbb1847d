"""Captions alone, out of tables that need not have images, or out of any layout of pairs."""

from dataclasses import dataclass
from pathlib import Path

from .columns import (
    CAPTION_COLUMN_NAMES,
    DEFAULT_COLUMNS,
    ImageFolder,
    PairColumns,
    require_captions,
    require_id,
    require_path,
)
from .datasets_library import Opening
from .file_rows import column_names, file_format, rows_of
from .layouts import is_table, open_pairs


@dataclass(frozen=True)
class Captions:
    """
    Attributes:
        texts (`list[str]`): the captions.
        rows (`list[int]`): the row of the file that each comes from; its place among all where there are no rows.
        image_ids (`list[str]`, *optional*):
            The image of each, after the name of its split where there are several; `None` where the data do not tell.
    """

    texts: list[str]
    rows: list[int]
    image_ids: list[str] | None


def read_captions(
    name_or_path: str,
    *,
    caption_column: str | None = None,
    image_id_column: str | None = None,
    image_column: str | None = None,
    image_folder: str | None = None,
) -> Captions:
    """
    Args:
        name_or_path (`str`): a JSON, JSON Lines, CSV, TSV or parquet file, or any other layout of docs/layouts.md.
        caption_column (`str`, *optional*):
            A string or a list of strings per row. By default the first of caption, captions and text that is there.
        image_id_column (`str`, *optional*):
            Tells which rows share an image. By default image_id, or the paths in image; where neither is there, the
            captions in one list share an image.
        image_column, image_folder (`str`, *optional*):
            As for [`~layouts.load_pairs`]; a table file needs no images and takes neither.

    Raises:
        FileNotFoundError: if `image_folder` is no folder.
        ValueError: for a file that is not there or cannot be read, lacks a column, or has a caption that is no text;
            and for an option that its layout does not have.
    """
    file = Path(name_or_path)
    if file_format(file) is not None and not file.is_file():
        raise ValueError(f"There is no file {name_or_path!r}.")
    if file.is_file() and is_table(file):
        for option, given in (("image_column", image_column), ("image_folder", image_folder)):
            if given is not None:
                raise ValueError(f"{file} is read without its images: leave {option}= off.")
        return _of_table(file, caption_column, image_id_column)
    columns = PairColumns(
        image=image_column or DEFAULT_COLUMNS.image,
        caption=caption_column,
        image_id=image_id_column or DEFAULT_COLUMNS.image_id,
    )
    folder = None if image_folder is None else Path(image_folder)
    sources = open_pairs(Opening(name_or_path, columns, folder))
    texts: list[str] = []
    image_ids: list[str] = []
    for split, source in sources.items():
        for image in (image for part in range(source.num_parts) for image in source.read(part)):
            texts += image.captions
            # an id is that of one image within its split alone
            image_ids += [f"{split}/{image.image_id}" if len(sources) > 1 else image.image_id] * len(image.captions)
    return Captions(texts, list(range(len(texts))), image_ids)


def _of_table(file: Path, caption_column: str | None, image_id_column: str | None) -> Captions:
    names = column_names(file)
    column = caption_column or next((name for name in CAPTION_COLUMN_NAMES if name in names), "caption")
    for option, wanted in (("caption_column", column), ("image_id_column", image_id_column)):
        if wanted is not None and wanted not in names:
            raise ValueError(
                f"{file}: there is no column {wanted!r}; it has {', '.join(names)}. Name another with {option}=."
            )
    id_column = image_id_column or next((name for name in ("image_id", "image") if _tells_images(file, name)), None)
    texts: list[str] = []
    rows: list[int] = []
    image_ids: list[str] = []
    has_lists, folder = False, ImageFolder(file.parent)
    columns = [column, *([] if id_column is None else [id_column])]
    for row, (place, values) in enumerate(rows_of(file, columns)):
        captions = require_captions(values.get(column), place, column)
        has_lists |= isinstance(values[column], list)
        image_id = str(row)
        if id_column == "image" and image_id_column is None:
            image_id = folder.identity(require_path(values.get(id_column), place, id_column))
        elif id_column is not None:
            if values.get(id_column) is None:
                raise ValueError(
                    f"{place}: {id_column!r} must be text or a whole number, but is missing. Fill it in, or name "
                    "another column with image_id_column=."
                )
            image_id = require_id(values.get(id_column), place, id_column)
        texts += captions
        rows += [row] * len(captions)
        image_ids += [image_id] * len(captions)
    if not texts:
        raise ValueError(f"{file} holds no captions.")
    return Captions(texts, rows, image_ids if has_lists or id_column is not None else None)


def _tells_images(file: Path, column: str) -> bool:
    """Whether a table has a column of texts or whole numbers of this name."""
    if column not in column_names(file):
        return False
    value = next((row.get(column) for _, row in rows_of(file, [column])), None)
    return value is None or isinstance(value, str | int) and not isinstance(value, bool)
