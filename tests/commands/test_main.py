"""The entry point: help without any library, exit codes, and what it says of mistakes and interruptions."""

import os
import subprocess
import sys

import pytest

from modeling_asymvlm.__main__ import main
from modeling_asymvlm._version import __version__
from modeling_asymvlm.commands import COMMANDS, HELP_PAGES, publish, train
from modeling_asymvlm.commands.help_pages import WIDTH, help_page
from modeling_asymvlm.utils.extras import EXTRAS


ABSENT = ["torch", "transformers", "numpy", "huggingface_hub", *EXTRAS]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An environment in which nothing that the package depends on can be imported."""
    folder = tmp_path_factory.mktemp("bare")
    lines = [f"sys.modules[{name!r}] = None" for name in ABSENT]
    (folder / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    paths = [str(folder), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_needs_no_library(arguments, bare):
    command = [sys.executable, "-m", "modeling_asymvlm", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=bare)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith((f"usage: asymvlm {arguments[0].replace('--help', 'COMMAND')}", __version__))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_that_is_kept_is_that_of_the_parser(command, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("ASYMVLM_", "GRADIO_SERVER_"))]:
        monkeypatch.delenv(name)
    kept = (HELP_PAGES / f"{command}.txt").read_text()
    assert kept == help_page(command), "write it again: python -m modeling_asymvlm.commands.help_pages"
    assert max(map(len, kept.splitlines())) <= max(WIDTH, 119) and len(kept.splitlines()) < 130
    assert {page.stem for page in HELP_PAGES.iterdir()} == set(COMMANDS)


@pytest.mark.parametrize("command", ["train", "evaluate", "example"])
def test_help_all_adds_the_trainers_own(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help", "all"])
    assert left.value.code == 0
    everything = capsys.readouterr().out
    short = (HELP_PAGES / f"{command}.txt").read_text()
    assert "--adam_beta1" in everything and "--adam_beta1" not in short
    assert "--learning_rate" in everything and ("--learning_rate" in short) == (command != "evaluate")
    assert ("--embeddings" in everything) == (command != "example")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "asymvlm: error: there is no command 'trian'; did you mean train?"),
        (["xyz"], "asymvlm: error: there is no command 'xyz'; choose one of example, demo, train,"),
        ([], "asymvlm: error: no command is named; choose one of"),
    ],
)
def test_a_wrong_command_is_answered_with_the_likely_one(arguments, said, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("parse", "arguments", "meant"),
    [
        (train.parse_arguments, ["--learing_rate", "1"], "--learning_rate"),
        (train.parse_arguments, ["--learning-rates=1"], "--learning_rate"),
        (publish.command_parser().parse_args, ["folder", "--repo_id", "a/b", "--privat"], "--private"),
    ],
)
def test_a_wrong_flag_is_answered_with_the_likely_one(parse, arguments, meant, capsys):
    with pytest.raises(SystemExit) as left:
        parse(arguments)
    assert left.value.code == 2
    assert f"; did you mean {meant}?" in capsys.readouterr().err


def test_an_interruption_ends_with_what_is_left(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "main", interrupted)
    assert main(["publish", "folder"]) == 130
    sentence = f"publish: interrupted; {COMMANDS['publish'].interrupted}"
    assert capsys.readouterr().err.splitlines()[-1] == sentence


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for name in [name for name in sys.modules if name.startswith("modeling_asymvlm.search")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "modeling_asymvlm.commands.search", raising=False)
    assert main(["search", "red"]) == 2
    said = 'search: error: `asymvlm search` needs faiss: pip install "modeling-asymvlm[search]"'
    assert capsys.readouterr().err.strip() == said
