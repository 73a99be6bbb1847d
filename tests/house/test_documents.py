"""README and the other documents: links, imports and commands that exist, and lengths that are kept."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import modeling_asymvlm
from modeling_asymvlm.commands import COMMANDS


REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
PAPERS = [REPOSITORY / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY", "RELEASE")]
GUIDES = [REPOSITORY / "demo" / "README.md"]
DOCUMENTS = [README, *PAGES, *PAPERS, *GUIDES]
MOST_LINES = 150

every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[str(document.relative_to(REPOSITORY)) for document in DOCUMENTS]
)


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prose(document: Path) -> str:
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_runnable(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
    except ModuleNotFoundError:
        return False
    return spec is not None


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@every_document
def test_relative_links_resolve(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@every_document
def test_imports_of_the_package_succeed_and_are_short(document):
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                ours = any(alias.name.partition(".")[0] == modeling_asymvlm.__name__ for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                ours = (node.module or "").partition(".")[0] == modeling_asymvlm.__name__
                if ours and node.module != modeling_asymvlm.__name__:
                    assert not {alias.name for alias in node.names} & set(modeling_asymvlm.__all__), ast.unparse(node)
            else:
                continue
            if ours:
                exec(ast.unparse(node), {})


@every_document
def test_commands_exist(document):
    # A changelog names commands of the past.
    text = document.read_text(encoding="utf-8").partition("### Changed, breaking")[0]
    for module, word in re.findall(r"python3? -m\s+([\w.]+)(?:[ \n]+([\w-]+))?", text):
        if module == modeling_asymvlm.__name__:
            assert word in {*COMMANDS, "--help"}, f"{module} {word}"
        elif module.partition(".")[0] in ("benchmarks", "examples", modeling_asymvlm.__name__):
            assert is_runnable(module), module
    for word in re.findall(r"(?:^|`)asymvlm ([\w-]+)", text, re.MULTILINE):
        assert word in {*COMMANDS, "--help", "--version", "COMMAND"}, f"asymvlm {word}"
    for script in re.findall(r"(?:python|launch|nproc_per_node \d+ \.\.\.)\s+([\w/]+\.py)", text):
        assert (REPOSITORY / script).is_file(), script


@every_document
def test_commands_take_the_flags_that_are_shown(document):
    if document.name == "CHANGELOG.md":  # which names flags of the past
        return
    for block in blocks(document, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.partition("  #")[0].replace("accelerate launch train_asymvlm.py", "asymvlm train")
            for command, words in re.findall(r"(?<![\w/-])asymvlm (\w+)( [^&|]*)", line):
                parser = importlib.import_module(f"modeling_asymvlm.commands.{command}").command_parser()
                unknown = set(re.findall(r"(?<=\s)--[\w-]+", words)) - set(parser._option_string_actions) - {"--help"}
                assert not unknown, f"{command}: {unknown}"


@every_document
def test_files_that_are_named_exist(document):
    names = re.findall(r"`((?:modeling_asymvlm|benchmarks|tests|examples|docs|demo)/[\w./]*)`", prose(document))
    if document.name == "CHANGELOG.md":
        names = [name for name in names if name not in ("benchmarks/compare.py", "docs/data.md", "docs/text_tools.md")]
    for name in names:
        assert (REPOSITORY / name).exists(), name


def test_every_page_is_on_the_map():
    named = set(re.findall(r"\]\((\w+\.md)\)", (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")))
    assert named == {page.name for page in PAGES} - {"index.md"}


def test_contributing_names_every_folder_of_the_package():
    package = Path(modeling_asymvlm.__file__).parent
    folders = {file.parent.name for file in package.glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", prose(PAPERS[0]), re.MULTILINE)) == folders
