"""The documentation site: every page and every public name is on it, and it is built without a warning."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_asymvlm


REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGURATION = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
REFERENCE = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation_once():
    named = re.findall(r": (\w+\.md)$", CONFIGURATION, re.MULTILINE)
    assert sorted(named) == sorted(page.name for page in (REPOSITORY / "docs").glob("*.md"))


def test_the_reference_has_every_public_name():
    directives = re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE)
    *names, metrics = directives
    assert metrics == "modeling_asymvlm.evaluation"
    found = {}
    for directive in names:
        module, _, name = directive.rpartition(".")
        found[name] = getattr(importlib.import_module(module), name)
    assert found == {name: getattr(modeling_asymvlm, name) for name in modeling_asymvlm.__all__ if name[0] != "_"}


def test_it_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "reference.html").read_text(encoding="utf-8")
    assert 'id="modeling_asymvlm.search.image_index.ImageIndex"' in page
    assert not re.findall(r'href="\.\./', (tmp_path / "index.html").read_text(encoding="utf-8"))
