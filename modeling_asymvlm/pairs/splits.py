"""How data sets, files and folders name their splits."""

import re
from collections.abc import Iterable
from pathlib import Path


SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {split: split for split in SPLITS} | dict.fromkeys(("valid", "val", "dev"), "validation")
FILE_OF_SPLIT = re.compile(rf"(?P<split>{'|'.join(SPLIT_NAMES)})(?P<piece>[-_.]?\d[-\w.]*)?")
PREFIXED_FILE_OF_SPLIT = re.compile(rf"(?:.*[-_.])?{FILE_OF_SPLIT.pattern}")
NUMBERED_FILE = re.compile(r".*-(?P<number>\d+)-of-(?P<total>\d+)(-.*)?")


def named_splits(names: Iterable[str], source: str) -> dict[str, str]:
    """
    The name that stands for each of train, validation and test; val, valid and dev stand for validation too.

    Raises:
        ValueError: if there is no train, or a split has two names.
    """
    names = list(names)
    found: dict[str, str] = {}
    for name in names:
        split = SPLIT_NAMES.get(name)
        if split is not None and found.setdefault(split, name) != name:
            raise ValueError(f"{source}: {found[split]} and {name} both stand for the split {split}. Keep one.")
    if "train" not in found:
        raise ValueError(f"The data {source!r} have no split train; they have {', '.join(names)}.")
    return {split: found[split] for split in SPLITS if split in found}


def files_of_splits(files: Iterable[Path], *, prefixed: bool = False) -> dict[str, list[Path]]:
    """
    Files by the split that their name stands for: `val.csv`, or in pieces `train-00000-of-00003.parquet`,
    `train-0000.tar`, `train2017.tar`. Files of other names are left out.

    Args:
        files (`Iterable[Path]`): the files.
        prefixed (`bool`, *optional*, defaults to `False`): whether something may stand before the split's name.

    Raises:
        ValueError: if two whole files stand for one split, or a file of a numbered series is missing.
    """
    pattern = PREFIXED_FILE_OF_SPLIT if prefixed else FILE_OF_SPLIT
    found: dict[str, list[Path]] = {}
    whole: dict[str, Path] = {}
    for file in sorted(files):
        match = pattern.fullmatch(file.stem)
        if match is None:
            continue
        split = SPLIT_NAMES[match["split"]]
        found.setdefault(split, []).append(file)
        if match["piece"] is None:
            whole[split] = file
    for split, of_split in found.items():
        if split in whole and len(of_split) > 1:
            other = next(file for file in of_split if file != whole[split])
            raise ValueError(f"{whole[split]} and {other.name} both stand for the split {split}. Keep one.")
        check_series(of_split)
    return {split: found[split] for split in SPLITS if split in found}


def files_in_folders_of_splits(folder: Path, pattern: str) -> dict[str, list[Path]]:
    """
    Files in the folders within a folder that are named after splits; empty if there are none.

    Raises:
        ValueError: if such files are in a folder of another split, but not of train, or in two folders of one split.
    """
    found = {name: sorted((folder / name).glob(pattern)) for name in SPLIT_NAMES}
    found = {name: files for name, files in found.items() if files}
    return {split: found[name] for split, name in named_splits(found, str(folder)).items()} if found else {}


def check_series(files: list[Path]) -> None:
    """Raises `ValueError` if files are named `...-NUMBER-of-TOTAL` and one of them is missing."""
    matches = [NUMBERED_FILE.fullmatch(file.stem) for file in files]
    numbers = {int(match["number"]) for match in matches if match}
    totals = {int(match["total"]) for match in matches if match}
    missing = sorted(set(range(max(totals, default=0))) - numbers)
    if missing:
        raise ValueError(
            f"{files[0].parent}: of {max(totals)} files, {len(missing)} are missing beside {files[0].name}, the first "
            f"is number {missing[0]}. Fetch them, or rename the others."
        )
