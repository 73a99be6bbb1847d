"""Images and their captions in the layouts that people have them in: one entry point that tells which it is."""

from pathlib import Path
from typing import Any

from .coco import begins_like_annotations, coco_files, load_annotations, read_annotations, read_coco
from .columns import PairColumns
from .datasets_library import Opening, open_hub, open_image_folder, open_saved, open_table
from .flickr import FLICKR_FILES, flickr_form, read_flickr
from .held_out import with_held_out_splits
from .sources import PairSource
from .splits import SPLITS, files_in_folders_of_splits, files_of_splits
from .webdataset import TarPairs


__all__ = ["DATA_SUFFIXES", "SPLITS", "load_pairs"]

FILE_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
DATA_SUFFIXES = (*FILE_FORMATS, ".tar", ".txt", ".token")
NO_OPTIONS_OF_TABLES = ("image_column", "caption_column", "image_id_column", "streaming", "config_name")
RECOGNISED = (
    "a folder of train, validation and test files (.json, .jsonl, .csv, .parquet), of images with metadata.jsonl or "
    "metadata.csv, of webdataset .tar shards, with COCO's captions_*.json, Karpathy's dataset_*.json, "
    f"{', '.join(FLICKR_FILES)}, or a data set of the datasets library"
)


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
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"There is no folder of images at {image_folder!r}.")
    opening = Opening(
        name=name_or_path,
        columns=PairColumns(image_column, caption_column, image_id_column),
        image_folder=None if image_folder is None else Path(image_folder),
        streaming=streaming,
        config_name=config_name,
    )
    path = Path(name_or_path)
    if path.is_file():
        splits = _of_file(path, opening)
    elif path.is_dir():
        splits = _of_folder(path, opening)
    else:
        splits = open_hub(opening)
    return with_held_out_splits(splits, held_out_fraction, seed)


def _of_file(file: Path, opening: Opening) -> dict[str, Any]:
    if file.suffix == ".tar":
        return _of_tars({"train": [file]}, opening)
    form = flickr_form(file) if file.suffix in (".csv", ".txt", ".token") else None
    if form is not None:
        opening.refuse(*NO_OPTIONS_OF_TABLES)
        return dict(read_flickr(file, form, opening.image_folder))
    content = load_annotations(file) if file.suffix == ".json" else None
    if content is not None:
        opening.refuse(*NO_OPTIONS_OF_TABLES)
        return dict(read_annotations(file, content, opening.image_folder))
    if file.suffix not in FILE_FORMATS:
        raise ValueError(
            f"{str(file)!r}: a data file must end in one of {', '.join(FILE_FORMATS)}, or be a .tar of webdataset or "
            f"one of {', '.join(FLICKR_FILES)} with its first line."
        )
    return open_table({"train": [file]}, FILE_FORMATS[file.suffix], opening)


def _of_folder(folder: Path, opening: Opening) -> dict[str, Any]:
    if (folder / "img_emb").is_dir():
        raise ValueError(
            f"{str(folder)!r} holds the features of clip-retrieval, not pairs: make a store of them with `python -m "
            "modeling_asymvlm convert`, to be passed as embeddings=."
        )
    if any(folder.glob("metadata.*")) or any(folder.glob("*/metadata.*")):
        return open_image_folder(folder, opening)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return open_saved(folder, opening)
    tables = files_of_splits(file for file in folder.iterdir() if file.suffix in FILE_FORMATS)
    if "train" in tables:
        formats = {FILE_FORMATS[file.suffix] for of_split in tables.values() for file in of_split}
        if len(formats) > 1:
            raise ValueError(
                f"{str(folder)!r}: the files of all splits must have one format, but have {' and '.join(formats)}."
            )
        return open_table(tables, formats.pop(), opening)
    tars = _tars_of_splits(folder)
    if tars:
        return _of_tars(tars, opening)
    coco = coco_files(folder)
    if coco:
        opening.refuse(*NO_OPTIONS_OF_TABLES)
        return {split: read_coco(file, opening.image_folder, split) for split, file in coco.items()}
    captions = [file for file in sorted(folder.glob("dataset_*.json")) if begins_like_annotations(file)]
    captions += [folder / name for name in FLICKR_FILES if (folder / name).is_file()]
    if len(captions) > 1:
        raise ValueError(f"{str(folder)!r} holds {' and '.join(file.name for file in captions)}: name one of them.")
    if captions:
        return _of_file(captions[0], opening)
    if (folder / "README.md").is_file() or (folder / "data").is_dir():
        return open_hub(opening)
    raise ValueError(
        f"The folder {str(folder)!r} is of no layout that is recognised, which are {RECOGNISED}. A folder of cached "
        "features is passed as embeddings=."
    )


def _tars_of_splits(folder: Path) -> dict[str, list[Path]]:
    """Tar shards by their names, or by the folders named after splits that they lie in; without names, of train."""
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


def _of_tars(files: dict[str, list[Path]], opening: Opening) -> dict[str, Any]:
    if "train" not in files:
        raise ValueError(f"The shards of {opening.name!r} have no split train; they have {', '.join(files)}.")
    opening.refuse("image_column", "image_id_column", "image_folder", "config_name")
    return {split: TarPairs(of_split, opening.columns.caption) for split, of_split in files.items()}
