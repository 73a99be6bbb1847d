"""The code that travels with a published checkpoint, so that it loads where this package is not installed."""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files


AUTO_MAP = {
    "AutoConfig": "configuration_asymvlm.AsymVLMConfig",
    "AutoModel": "modeling_asymvlm.AsymVLMModel",
    "AutoModelForZeroShotImageClassification": "modeling_asymvlm.AsymVLMModel",
}


def code_files() -> list[Path]:
    """The files that the classes of `AUTO_MAP` import, themselves included, as transformers will look for them."""
    modeling = Path(__file__).with_name("modeling_asymvlm.py")
    return sorted({modeling, *map(Path, get_relative_import_files(modeling))})


def copy_code(folder: str | Path) -> None:
    """Copies the model's code into `folder`, which is created if need be."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file in code_files():
        shutil.copyfile(file, Path(folder) / file.name)


@contextmanager
def unchanged(config: PreTrainedConfig) -> Iterator[None]:
    """Undoes on leaving what was done to the attributes of `config` inside, whether or not it failed."""
    kept = {name: dict(value) if name == "auto_map" and value else value for name, value in vars(config).items()}
    try:
        yield
    finally:
        vars(config).clear()
        vars(config).update(kept)


@contextmanager
def published(config: PreTrainedConfig) -> Iterator[None]:
    """Inside, `config` is that of a published checkpoint: saving it saves the model's code too."""
    with unchanged(config):
        config.auto_map = dict(AUTO_MAP)
        yield


def check_auto_map(auto_map: Mapping[str, Any] | None) -> None:
    """
    Raises `ValueError` unless each entry is `module.Class`, with or without `repository--` before it: anything else
    could name a file outside of the repository.
    """
    for name, entry in (auto_map or {}).items():
        for reference in entry if isinstance(entry, list | tuple) else [entry]:
            repository, _, class_name = str(reference).rpartition("--")
            well_formed = re.fullmatch(r"\w+\.\w+", class_name) and re.fullmatch(r"([\w.-]+/)?[\w.-]*", repository)
            if reference is not None and (not well_formed or ".." in repository):
                raise ValueError(
                    f"config.json names the code of {name} as {reference!r}, which must be `module.Class` in the "
                    "repository itself. Do not load this checkpoint unless you trust where it comes from."
                )


def check_file_names(names: Iterable[str], source: str | Path) -> None:
    """Raises `ValueError` for a name in `source` that is not that of a file beside it."""
    for name in names:
        if name != Path(name).name or "\\" in name:
            raise ValueError(
                f"{source} names the file {name!r}, which does not lie beside it. Do not load this checkpoint unless "
                "you trust where it comes from."
            )
