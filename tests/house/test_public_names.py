"""What `from modeling_asymvlm import ...` gives, and what it says where an extra is missing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_asymvlm
from modeling_asymvlm.utils.extras import EXTRAS, require


INIT = Path(modeling_asymvlm.__file__)


def without(*modules: str, code: str) -> subprocess.CompletedProcess:
    """Runs a program where modules cannot be imported."""
    absent = "".join(f"sys.modules[{name!r}] = None\n" for name in modules)
    return subprocess.run([sys.executable, "-c", f"import sys\n{absent}{code}"], capture_output=True, text=True)


@pytest.mark.parametrize("name", modeling_asymvlm.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(modeling_asymvlm, name) is not None
    assert name in dir(modeling_asymvlm)


def test_type_checkers_see_the_names_that_are_imported_late():
    tree = ast.parse(INIT.read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == modeling_asymvlm._MODULES
    assert set(modeling_asymvlm.__all__) >= set(seen)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'TextIndexes'"):
        _ = modeling_asymvlm.TextIndexes


def test_the_package_is_imported_without_any_extra():
    needed_by_transformers = {"filelock", "fsspec", "yaml"}
    result = without(*(EXTRAS.keys() - needed_by_transformers), code="import modeling_asymvlm")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("TextIndex", "faiss", "search"),
        ("ImageIndex", "faiss", "search"),
        ("EmbeddingStore", "pyarrow", "train"),
        ("load_pairs", "datasets", "train"),
        ("AsymVLMTrainer", "accelerate", "train"),
        ("ConformalSets", "scipy", "train"),
        ("entails", "scipy", "train"),
    ],
)
def test_a_missing_extra_is_named(name, module, extra):
    result = without(module, code=f"from modeling_asymvlm import {name}")
    assert result.returncode == 1
    assert f'ImportError: {name} needs {module}: pip install "modeling-asymvlm[{extra}]"' in result.stderr


@pytest.mark.parametrize(
    ("place", "module"),
    [
        ("search.text_index", "faiss"),
        ("search.lance_index", "lancedb"),
        ("pairs.layouts", "PIL"),
        ("store.embedding_store", "pyarrow"),
        ("reporting.plots", "matplotlib"),
        ("calibration.conformal", "scipy"),
    ],
)
def test_a_missing_extra_is_named_where_a_module_is_imported_itself(place, module):
    result = without(module, code=f"import modeling_asymvlm.{place}")
    assert f'needs {module}: pip install "modeling-asymvlm[{EXTRAS[module]}]"' in result.stderr


def test_what_is_there_is_not_asked_for():
    require("anything", "json", "numpy")
