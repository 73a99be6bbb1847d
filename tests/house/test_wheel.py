"""The wheel: what is in it, what its page says, and that it starts where nothing else of the project lies."""

import email.message
import email.parser
import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from modeling_asymvlm._version import __version__
from modeling_asymvlm.commands import COMMANDS


REPOSITORY = Path(__file__).resolve().parents[2]
BUILT_FROM = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "train_asymvlm.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "modeling_asymvlm", source / "modeling_asymvlm", ignore=ignored)
    for name in BUILT_FROM:
        shutil.copy(REPOSITORY / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*command, "--wheel-dir", str(folder)], cwd=source, check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.BytesParser().parsebytes(archive.read(name))


def test_it_holds_the_package_whole_and_nothing_beside_it(wheel):
    package = REPOSITORY / "modeling_asymvlm"
    files = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (commands,) = [archive.read(name) for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert names == {file.relative_to(REPOSITORY).as_posix() for file in files}
    assert b"asymvlm = modeling_asymvlm.__main__:main" in commands


def test_its_page_has_no_dead_link_and_its_extras_are_whole(metadata):
    assert metadata["Version"] == __version__
    text = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links and all(link.startswith("https://") for link in links)
    assert "[Results]" not in text and "| Results, Rivals |" in text
    extras = set(metadata.get_all("Provides-Extra"))
    required = metadata.get_all("Requires-Dist")
    (everything,) = [line for line in required if re.search(r"""extra == ["']all["']""", line)]
    assert set(re.findall(r"\w+", everything.partition("[")[2].partition("]")[0])) == extras - {"all", "dev", "docs"}
    core = {re.split(r"[<>=]", line)[0] for line in required if "extra ==" not in line}
    assert core == {"pillow", "torch", "transformers"}


def test_it_makes_trains_and_shows_the_example_and_searches_it(wheel, tmp_path):
    """What it depends on is that of this environment, so that nothing is downloaded."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "beneath.pth").write_text("\n".join(site.getsitepackages()))
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv" / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--ignore-installed", str(wheel)], check=True)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)

    def run(*arguments: str) -> str:
        command = [str(tmp_path / "venv" / "bin" / "asymvlm"), *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert str(REPOSITORY) not in result.stdout + result.stderr
        assert not {"PAD/BOS", "torchao", "eval_loss"} & set(re.findall(r"PAD/BOS|torchao|eval_loss", result.stderr))
        return result.stdout

    assert all(name in run("--help") for name in COMMANDS)
    shown = run("example", "--max_steps", "20")
    assert "Test split: 2000 images" in shown and re.search(r"^  \d\.\d{4}  a small red circle$", shown, re.MULTILINE)
    assert (tmp_path / "cache" / "asymvlm" / "scenes" / "test.parquet").is_file()
    results = json.loads((tmp_path / "outputs" / "asymvlm" / "all_results.json").read_text())
    assert results["test"]["num_images"] == 2000
    found = json.loads(run("search", "a small red circle", "--json"))
    assert len(found["images"]) == 5 and found["presence"] is not None
