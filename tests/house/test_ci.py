"""What runs the checks names files that are there, and the versions that are pinned."""

import re
from pathlib import Path

import pytest
import yaml


REPOSITORY = Path(__file__).resolve().parents[2]
MATRIX = (REPOSITORY / ".ci" / "matrix").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", re.findall(r"^ +(tests/\S+)$", MATRIX, flags=re.MULTILINE))
def test_the_tests_with_older_versions_are_there(path):
    assert (REPOSITORY / path).exists()


def test_pre_commit_has_the_ruff_of_the_constraints():
    (pinned,) = re.findall(r"^ruff==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), flags=re.MULTILINE)
    (hooks,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert hooks["rev"] == f"v{pinned}"


def test_the_oldest_version_that_is_tested_is_the_oldest_that_is_allowed():
    oldest = re.search(r"^versions=\((\S+)", MATRIX, flags=re.MULTILINE)
    assert oldest and f"transformers>={oldest[1]}," in (REPOSITORY / "setup.cfg").read_text()
