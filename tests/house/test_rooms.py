"""The street plan: which folder may import which, what travels, and how large a folder may be."""

import ast
from pathlib import Path

import pytest

import modeling_asymvlm
from modeling_asymvlm.model.checkpoint_code import code_files


PACKAGE = Path(modeling_asymvlm.__file__).parent
EVERYTHING_ABOVE = {"utils", "model", "evaluation", "pairs", "store", "texts", "calibration", "training", "search"}
MAY_IMPORT = {
    "utils": set(),
    "model": set(),
    "evaluation": {"utils"},
    "pairs": {"utils"},
    "store": {"pairs", "model", "utils"},
    "texts": {"model", "calibration", "utils"},
    "calibration": {"model", "store", "evaluation", "utils"},
    "training": {"model", "store", "utils"},
    "search": {"model", "store", "calibration", "utils"},
    "zero_shot": {"model", "texts", "utils"},
    "reporting": {*EVERYTHING_ABOVE, "zero_shot"},
    "publishing": {"model", "reporting", "texts"},
    "scenes": set(),
    "demo": {"model", "store", "pairs", "texts", "calibration", "search", "scenes", "utils"},
    "commands": {*EVERYTHING_ABOVE, "zero_shot", "reporting", "publishing", "scenes", "demo"},
}
MOST_MODULES = 25


def modules() -> list[Path]:
    return sorted(file for file in PACKAGE.rglob("*.py") if "__pycache__" not in file.parts)


def room_of(file: Path) -> str | None:
    place = file.relative_to(PACKAGE).parts
    return place[0] if len(place) > 1 else None


def imported_modules(file: Path) -> set[str]:
    """Dotted names, below the package, of the package's own modules that a file imports anywhere in it."""
    package = [modeling_asymvlm.__name__, *file.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{target}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.partition(".")[2] for name in names if name.partition(".")[0] == package[0]}
    return {name for name in found if name}


def test_every_folder_is_in_the_table_and_none_is_crowded():
    rooms = {room_of(file) for file in modules()} - {None}
    assert rooms == set(MAY_IMPORT)
    for room in rooms:
        assert len(list((PACKAGE / room).glob("*.py"))) - 1 <= MOST_MODULES, room


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_folder_imports_only_what_the_table_allows(room):
    for file in modules():
        if room_of(file) == room:
            rooms = {name.partition(".")[0] for name in imported_modules(file)} & set(MAY_IMPORT)
            assert rooms <= MAY_IMPORT[room] | {room}, file


def test_the_table_has_no_cycle():
    floors: dict[str, int] = {}
    while len(floors) < len(MAY_IMPORT):
        ready = [room for room in MAY_IMPORT if room not in floors and MAY_IMPORT[room] <= floors.keys()]
        assert ready, f"a cycle among {MAY_IMPORT.keys() - floors.keys()}"
        floors |= {room: 1 + max([floors[below] for below in MAY_IMPORT[room]], default=0) for room in ready}


def test_modules_import_one_another_without_a_cycle():
    names = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in modules()}
    arrows = {}
    for name, file in names.items():
        targets = set()
        for imported in imported_modules(file):
            while imported and imported not in names:
                imported = imported.rpartition(".")[0]
            targets |= {imported} - {"", name}
        arrows[name] = targets
    done: set[str] = set()
    while len(done) < len(arrows):
        free = {name for name, targets in arrows.items() if name not in done and targets <= done}
        assert free, {name: targets - done for name, targets in arrows.items() if name not in done}
        done |= free


def test_what_travels_with_a_checkpoint_is_the_model_folder():
    files = {file for file in (PACKAGE / "model").glob("*.py") if file.name != "__init__.py"}
    assert set(code_files()) == files


def test_files_that_travel_import_one_another_flat():
    for file in (PACKAGE / "model").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and "." not in node.module, file
