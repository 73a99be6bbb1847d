"""Images and their captions in the layouts that people have them in: one entry point that tells which it is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .coco import begins_like_annotations, coco_files, load_annotations, read_annotations, read_coco
from .columns import PairColumns
from .datasets_library import Opening, metadata_files, open_hub, open_image_folder, open_saved, open_table
from .file_rows import FILE_FORMATS, file_format
from .flickr import FLICKR_FILES, flickr_form, read_flickr
from .held_out import with_held_out_splits
from .sources import PairSource
from .splits import SPLITS, files_of_splits
from .webdataset import TarPairs, tars_of_splits


__all__ = ["DATA_SUFFIXES", "SPLITS", "load_pairs"]

DATA_SUFFIXES = (*FILE_FORMATS, ".tar", ".txt", ".token")
NO_OPTIONS_OF_TABLES = ("image_column", "caption_column", "image_id_column", "streaming", "config_name")


@dataclass(frozen=True)
class Layout:
    """
    A layout of files or of folders.

    Args:
        name (`str`): what it is called.
        looks_like (`str`): how one tells it, for the message that refuses what is of none.
        matches (`Callable`): whether a file or folder is of it; `ValueError` for one that is, but is incomplete.
        open (`Callable`): gives its splits, as an [`Opening`] says; `ValueError` for data that cannot be read.
    """

    name: str
    looks_like: str
    matches: Callable[[Path], bool]
    open: Callable[[Path, Opening], dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.name} ({self.looks_like})"


def load_pairs(
    name_or_path: str,
    *,
    config_name: str | None = None,
    image_column: str = "image",
    caption_column: str | None = None,
    image_id_column: str = "image_id",
    image_folder: str | None = None,
    streaming: bool = False,
    held_out_fraction: float = 0.1,
    seed: int = 0,
) -> dict[str, PairSource]:
    """
    The pairs of the splits train, validation and test, read from any layout of docs/layouts.md.

    Args:
        name_or_path (`str`): a file, a folder, or the name of a data set on the Hub.
        config_name (`str`, *optional*): configuration of a data set of the `datasets` library.
        image_column (`str`, *optional*, defaults to `"image"`): images, or their paths.
        caption_column (`str`, *optional*):
            A string or a list of strings per row. By default the first of caption, captions and text that is there.
        image_id_column (`str`, *optional*, defaults to `"image_id"`): tells which rows share an image; may be missing.
        image_folder (`str`, *optional*): what paths of images are relative to, if not to the data's own folder.
        streaming (`bool`, *optional*, defaults to `False`):
            Read from the files as they come, rather than from a copy that `datasets` makes.
        held_out_fraction (`float`, *optional*, defaults to 0.1):
            Share of the training images for each of validation and test that is missing, in (0, 0.5).
        seed (`int`, *optional*, defaults to 0): draws the images that are held out.

    Returns:
        A [`PairSource`] for each of train, validation and test.

    Raises:
        FileNotFoundError: if `image_folder` is no folder.
        ValueError: for data of no known layout, data that cannot be read, or an option that the layout does not have;
            and for rows that are no pairs, as far as they are read.
    """
    opening = Opening(
        name=name_or_path,
        columns=PairColumns(image_column, caption_column, image_id_column),
        image_folder=None if image_folder is None else Path(image_folder),
        streaming=streaming,
        config_name=config_name,
    )
    return with_held_out_splits(open_pairs(opening), held_out_fraction, seed)


def open_pairs(opening: Opening) -> dict[str, Any]:
    """
    The splits that the data themselves have, train among them.

    Raises:
        FileNotFoundError, ValueError: as [`load_pairs`].
    """
    if opening.image_folder is not None and not opening.image_folder.is_dir():
        raise FileNotFoundError(f"There is no folder of images at {str(opening.image_folder)!r}.")
    path = Path(opening.name)
    if path.is_file():
        return _open_file(path, opening)
    return _open_folder(path, opening) if path.is_dir() else open_hub(opening)


def is_table(file: Path) -> bool:
    """Whether a file is a table of pairs or of captions, rather than a caption file or shard of its own layout."""
    return _first_that_matches(FILES, file) is TABLE_FILE


def _first_that_matches(layouts: Iterable[Layout], path: Path) -> Layout | None:
    return next((layout for layout in layouts if layout.matches(path)), None)


def _open_file(file: Path, opening: Opening) -> dict[str, Any]:
    layout = _first_that_matches(FILES, file)
    if layout is None:
        others = ", or ".join(other.looks_like for other in FILES if other is not TABLE_FILE)
        raise ValueError(f"{str(file)!r}: a data file must {TABLE_FILE.looks_like}, or {others}.")
    return layout.open(file, opening)


def _open_folder(folder: Path, opening: Opening) -> dict[str, Any]:
    if (folder / "img_emb").is_dir():
        raise ValueError(
            f"{str(folder)!r} holds the features of clip-retrieval, not pairs: make a store of them with `python -m "
            "modeling_asymvlm convert`, which training takes as embeddings=."
        )
    layout = _first_that_matches(FOLDERS, folder)
    if layout is None:
        raise ValueError(
            f"The folder {str(folder)!r} is of no layout that is recognised, which are "
            f"{', '.join(map(str, FOLDERS))}. Cached features are no pairs: training takes their folder as "
            "embeddings=."
        )
    return layout.open(folder, opening)


def _is_flickr(file: Path) -> bool:
    return file.suffix.lower() in (".csv", ".txt", ".token") and flickr_form(file) is not None


def _open_flickr(file: Path, opening: Opening) -> dict[str, Any]:
    opening.refuse(*NO_OPTIONS_OF_TABLES)
    return dict(read_flickr(file, str(flickr_form(file)), opening.image_folder))


def _open_annotations(file: Path, opening: Opening) -> dict[str, Any]:
    content = load_annotations(file)
    if content is None:  # a table whose first column has the name of theirs
        return _open_table_file(file, opening)
    opening.refuse(*NO_OPTIONS_OF_TABLES)
    return dict(read_annotations(file, content, opening.image_folder))


def _open_table_file(file: Path, opening: Opening) -> dict[str, Any]:
    return open_table({"train": [file]}, str(file_format(file)), opening)


def _is_image_folder(folder: Path) -> bool:
    return bool(metadata_files(folder))


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _tables_of_splits(folder: Path) -> dict[str, list[Path]]:
    return files_of_splits(file for file in folder.iterdir() if file_format(file))


def _open_tables(folder: Path, opening: Opening) -> dict[str, Any]:
    tables = _tables_of_splits(folder)
    formats = {str(file_format(file)) for of_split in tables.values() for file in of_split}
    if len(formats) > 1:
        raise ValueError(
            f"{str(folder)!r}: the files of all splits must have one format, but have {' and '.join(formats)}."
        )
    return open_table(tables, formats.pop(), opening)


def _open_tars(files: dict[str, list[Path]], opening: Opening) -> dict[str, Any]:
    if "train" not in files:
        raise ValueError(f"The shards of {opening.name!r} have no split train; they have {', '.join(files)}.")
    opening.refuse("image_column", "image_id_column", "image_folder", "config_name")
    return {split: TarPairs(of_split, opening.columns.caption) for split, of_split in files.items()}


def _open_coco(folder: Path, opening: Opening) -> dict[str, Any]:
    opening.refuse(*NO_OPTIONS_OF_TABLES)
    return {split: read_coco(file, opening.image_folder, split) for split, file in coco_files(folder).items()}


def _caption_files(folder: Path) -> list[Path]:
    karpathy = [file for file in sorted(folder.glob("dataset_*.json")) if begins_like_annotations(file)]
    return karpathy + [folder / name for name in FLICKR_FILES if (folder / name).is_file()]


def _open_caption_file(folder: Path, opening: Opening) -> dict[str, Any]:
    files = _caption_files(folder)
    if len(files) > 1:
        raise ValueError(f"{str(folder)!r} holds {' and '.join(file.name for file in files)}: name one of them.")
    return _open_file(files[0], opening)


def _is_hub_folder(folder: Path) -> bool:
    return (folder / "README.md").is_file() or (folder / "data").is_dir()


TABLE_FILE = Layout(
    "a table",
    f"end in one of {', '.join(FILE_FORMATS)}",
    matches=lambda file: file_format(file) is not None,
    open=_open_table_file,
)

# Tried in this order: what has a layout of its own may end as a table does.
FILES = (
    Layout(
        "a shard of webdataset",
        "be a .tar of webdataset",
        matches=lambda file: file.suffix.lower() == ".tar",
        open=lambda file, opening: _open_tars({"train": [file]}, opening),
    ),
    Layout(
        "a caption file of Flickr8k or Flickr30k",
        f"one of {', '.join(FLICKR_FILES)} with its first line",
        matches=_is_flickr,
        open=_open_flickr,
    ),
    Layout(
        "an annotation file",
        "COCO's captions_*.json or Karpathy's dataset_*.json",
        matches=lambda file: file.suffix.lower() == ".json" and begins_like_annotations(file),
        open=_open_annotations,
    ),
    TABLE_FILE,
)

# Tried in this order: images and captions may lie beside files that have the name of another layout.
FOLDERS = (
    Layout(
        "an image folder",
        "with metadata.jsonl or metadata.csv",
        matches=_is_image_folder,
        open=open_image_folder,
    ),
    Layout(
        "a data set that save_to_disk wrote",
        "with dataset_dict.json or state.json",
        matches=_is_saved,
        open=open_saved,
    ),
    Layout(
        "tables",
        f"train, validation and test files, {', '.join(FILE_FORMATS)}",
        matches=lambda folder: "train" in _tables_of_splits(folder),
        open=_open_tables,
    ),
    Layout(
        "webdataset",
        ".tar shards",
        matches=lambda folder: bool(tars_of_splits(folder)),
        open=lambda folder, opening: _open_tars(tars_of_splits(folder), opening),
    ),
    Layout(
        "COCO",
        "captions_*.json",
        matches=lambda folder: bool(coco_files(folder)),
        open=_open_coco,
    ),
    Layout(
        "one caption file of Karpathy or Flickr",
        f"dataset_*.json, {', '.join(FLICKR_FILES)}",
        matches=lambda folder: bool(_caption_files(folder)),
        open=_open_caption_file,
    ),
    Layout(
        "a data set of the datasets library",
        "with README.md or data/",
        matches=_is_hub_folder,
        open=lambda folder, opening: open_hub(opening),
    ),
)
