"""transformers' own common tests, taken from its source distribution on PyPI: unpacked, imported, never copied."""

import importlib
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from typing import Any


PACKAGE = "transformers_common_tests"
COMMON = "tests/test_"
# Sub-packages that the distribution leaves out, and the names that the common tests import from them: mixins of tests
# of generation and export, which no test of a dual encoder takes part in, and values for configurations without parts.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}


def download(version: str, folder: Path) -> Path:
    """
    Downloads the source distribution of transformers of this version, and `parameterized`, which its tests import.

    Returns:
        The archive.

    Raises:
        subprocess.CalledProcessError: if PyPI cannot be reached.
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wanted = ["--no-deps", "--no-binary", "transformers", f"transformers=={version}"]
    subprocess.run([*pip, "download", *wanted, "--dest", str(folder)], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "libraries"), "parameterized"], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def import_common_tests(archive: Path, folder: Path) -> tuple[Any, Any]:
    """
    Unpacks the common tests under a name of their own, since this project has a package `tests` too.

    Args:
        archive (`Path`): the source distribution.
        folder (`Path`): where to unpack it; libraries of [`download`] lie in `folder / "libraries"`.

    Returns:
        The modules of the common tests of models and of configurations.
    """
    package = folder / PACKAGE
    package.mkdir()
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            _, _, name = member.name.partition("/")
            if name.startswith(COMMON) and name.endswith(".py") and name.count("/") == 1:
                (package / Path(name).name).write_bytes(files.extractfile(member).read())  # type: ignore[union-attr]
    (package / "__init__.py").touch()
    sys.path[:0] = [str(folder), str(folder / "libraries")]
    for name, contents in LEFT_OUT.items():
        above, _, _ = name.partition(".")
        for place, values in ((above, {"__path__": []}), (name, contents)):
            module = types.ModuleType(f"{PACKAGE}.{place}")
            vars(module).update(values)
            sys.modules[module.__name__] = module
    return tuple(  # type: ignore[return-value]
        importlib.import_module(f"{PACKAGE}.test_{kind}_common") for kind in ("modeling", "configuration")
    )
