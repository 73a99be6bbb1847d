"""Data sets that the `datasets` library reads: table files, image folders, saved data sets, the Hub."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub

from .columns import DEFAULT_COLUMNS, ImageFolder, PairColumns
from .file_rows import column_names, file_format
from .row_tables import RowFile, cached_rows, cause_of, image_places, row_tables, streamed_rows
from .splits import SPLIT_NAMES, named_splits
from .streams import StreamPairs
from .tables import TablePairs


FILE_NAME = "file_name"  # the column of paths in the metadata of an image folder


@dataclass(frozen=True)
class Opening:
    """
    How data are to be opened.

    Args:
        name (`str`): the file, the folder, or the name on the Hub.
        columns (`PairColumns`, *optional*): where the images and captions stand.
        image_folder (`Path`, *optional*): what paths of images are relative to, if not to the data's own folder.
        streaming (`bool`, *optional*, defaults to `False`):
            Read from the files as they come, rather than from a copy in the cache of `datasets`.
        config_name (`str`, *optional*): configuration of a data set of the `datasets` library.
    """

    name: str
    columns: PairColumns = DEFAULT_COLUMNS
    image_folder: Path | None = None
    streaming: bool = False
    config_name: str | None = None

    def refuse(self, *options: str) -> None:
        """Raises `ValueError` if one of these options was given, for a layout that has no use for it."""
        given = {
            "image_column": self.columns.image != DEFAULT_COLUMNS.image,
            "caption_column": self.columns.caption is not None,
            "image_id_column": self.columns.image_id != DEFAULT_COLUMNS.image_id,
            "image_folder": self.image_folder is not None,
            "streaming": self.streaming,
            "config_name": self.config_name is not None,
        }
        for option in options:
            if given[option]:
                raise ValueError(f"{self.name!r} is of a layout in which {option}= means nothing. Leave it off.")

    def folder(self, own: Path) -> ImageFolder:
        """Where the paths of images lead in files of the user's own."""
        return ImageFolder(self.image_folder or own)


def open_table(files: Mapping[str, list[Path]], file_format: str, opening: Opening) -> dict[str, Any]:
    """The splits of table files of one format, one of the values of `FILE_FORMATS`."""
    opening.refuse("config_name")
    folder = opening.folder(next(iter(files.values()))[0].parent)
    if file_format == "parquet":
        return open_dataset(file_format, folder, opening, data_files=_exactly(files))
    rows = {split: [RowFile(file) for file in of_split] for split, of_split in files.items()}
    return _open_rows(rows, folder, opening, opening.columns)


def open_image_folder(path: Path, opening: Opening) -> dict[str, Any]:
    """
    The splits of a folder of images with `metadata.jsonl` or `metadata.csv`, in it or in each of the folders in it.
    These are splits if all that hold images are named as splits, and else one split, train.
    """
    opening.refuse("config_name", "image_folder")
    image_column = FILE_NAME if opening.columns.image == DEFAULT_COLUMNS.image else opening.columns.image
    columns = replace(opening.columns, image=image_column)
    files = metadata_files(path)
    for file in files:  # as `datasets` calls the column, whatever the file does
        names = ["image" if name == FILE_NAME else name for name in column_names(file)]
        opening.columns.found_in(names, str(file))
    if files[0].parent == path:
        folders = sorted(image_places(files[0], columns))
        rows = {folder: [RowFile(files[0], within=folder)] for folder in folders}
    else:
        rows = {file.parent.name: [RowFile(file, image_prefix=file.parent.name)] for file in files}
    if not rows.keys() & SPLIT_NAMES.keys():
        everything = [RowFile(files[0])] if files[0].parent == path else [of[0] for of in rows.values()]
        return _open_rows({"train": everything}, ImageFolder(path), opening, columns)
    others = sorted(rows.keys() - SPLIT_NAMES.keys())
    if others:
        named = ", ".join(repr(name) for name in rows if name in SPLIT_NAMES)
        raise ValueError(
            f"{opening.name!r}: some images are in folders named as splits, {named}, and some are not: they are in "
            f"{', '.join(repr(other) if other else 'none' for other in others)}. Name all folders as splits, or none."
        )
    splits = {split: rows[name] for split, name in named_splits(rows, opening.name).items()}
    return _open_rows(splits, ImageFolder(path), opening, columns)


def metadata_files(folder: Path) -> list[Path]:
    """
    The metadata file of a folder of images, or else those of the folders in it.

    Raises:
        ValueError: if there are two in one folder.
    """
    for folders in ([folder], sorted(inner for inner in folder.iterdir() if inner.is_dir())):
        found = [_metadata_file(inner) for inner in folders]
        if any(found):
            return [file for file in found if file is not None]
    return []


def _metadata_file(folder: Path) -> Path | None:
    found = sorted(file for file in folder.glob("metadata.*") if file_format(file))
    if len(found) > 1:
        raise ValueError(f"{str(folder)!r} holds {' and '.join(file.name for file in found)}. Keep one.")
    return next(iter(found), None)


def _open_rows(
    files: Mapping[str, Sequence[RowFile]], folder: ImageFolder, opening: Opening, columns: PairColumns
) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for split, of_split in files.items():
        name = _name_of(opening, split, files)
        tables = row_tables(of_split, columns)
        found = tables.columns
        if opening.streaming:
            splits[split] = StreamPairs(streamed_rows(tables), folder, name, found, tables.version)
        else:
            as_read = PairColumns(found.image, found.caption, found.image_id or DEFAULT_COLUMNS.image_id)
            splits[split] = TablePairs(cached_rows(tables), folder, name, as_read)
    return splits


def _exactly(files: Mapping[str, list[Path]]) -> datasets.data_files.DataFilesDict:
    """Files for `datasets`, which takes paths for patterns otherwise."""
    exact = {}
    for split, of_split in files.items():
        places = [str(file.absolute()) for file in of_split]
        times = [(str(os.stat(place).st_mtime_ns),) for place in places]
        exact[split] = datasets.data_files.DataFilesList(places, times)
    return datasets.data_files.DataFilesDict(exact)


def open_hub(opening: Opening) -> dict[str, Any]:
    """
    The splits of a data set on the Hub, whose paths may only lead to what was downloaded, or to `image_folder`; or of
    a local folder that is laid out as one.
    """
    if Path(opening.name).is_dir():
        return open_dataset(opening.name, opening.folder(Path(opening.name)), opening)
    cache = [Path(huggingface_hub.constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)]
    folder = opening.image_folder or cache[0]
    return open_dataset(opening.name, ImageFolder(folder, [folder, *cache]), opening)


def open_saved(path: Path, opening: Opening) -> dict[str, Any]:
    """The splits of a data set that `save_to_disk` wrote."""
    opening.refuse("config_name", "streaming")
    loaded = datasets.load_from_disk(str(path))
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    return {
        split: TablePairs(splits[name], opening.folder(path), opening.name, opening.columns)
        for split, name in named_splits(splits, opening.name).items()
    }


def open_dataset(
    name: str, folder: ImageFolder, opening: Opening, **data_files: Any
) -> dict[str, TablePairs | StreamPairs]:
    """
    The splits of what `datasets.load_dataset` loads.

    Raises:
        ValueError: for data that cannot be read or lack a split train, and as [`TablePairs`].
    """
    try:
        if not opening.streaming:
            loaded = datasets.load_dataset(name, opening.config_name, **data_files)
            return {
                split: TablePairs(loaded[found], folder, _name_of(opening, split, loaded), opening.columns)
                for split, found in named_splits(loaded, opening.name).items()
            }
        builder = datasets.load_dataset_builder(name, opening.config_name, **data_files)
        streams = builder.as_streaming_dataset()
        return {
            split: _stream(streams[found], builder, found, folder, _name_of(opening, split, streams), opening.columns)
            for split, found in named_splits(streams, opening.name).items()
        }
    except (datasets.exceptions.DatasetsError, StopIteration) as error:
        raise ValueError(f"{opening.name} cannot be read: {str(cause_of(error)) or 'it is empty'}.") from error


def _name_of(opening: Opening, split: str, splits: Mapping[str, Any]) -> str:
    return opening.name if len(splits) == 1 else f"{opening.name}, split {split}"


def _stream(
    dataset: datasets.IterableDataset,
    builder: datasets.DatasetBuilder,
    split: str,
    folder: ImageFolder,
    name: str,
    columns: PairColumns,
) -> StreamPairs:
    if dataset.features is None:
        names = list(next(iter(dataset), {}))
    else:
        dataset = dataset.decode(False)
        names = dataset.column_names
    version = [builder.config.name, builder.hash]
    if builder.config.data_files is not None:  # which a data set of the Hub has not that is read from the cache
        files = builder.config.data_files[split]
        version += [list(files), files.origin_metadata]
    return StreamPairs(dataset, folder, name, columns.found_in(names, name), json.dumps(version))
