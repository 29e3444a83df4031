"""Imports run one way: folders import downwards only, and so do the rooms of pipeline/ and train/."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "shards": {"shards"},
    "pipeline": {"shards", "pipeline"},
    "train": {"shards", "pipeline", "train"},
    "tools": {"shards", "pipeline", "train", "tools"},
    "longtail": {"shards", "pipeline", "train", "tools", "longtail"},
}
FOREIGN = {"shards": {"torch", "nvidia"}}
MAX_DEPTH = 2
# Lowest first: a room or module imports those above its line, never those below. What is not listed stands on top.
FLOORS = {
    "pipeline": [
        {"rng", "transfer"},
        {"views", "mix_rule", "sampling"},
        {"augmentation", "plan"},
        {"executors", "upcoming", "labels_ahead"},
        {"loader"},
    ],
    "train": [
        {"losses", "inputs", "schedules", "option_forms", "provenance", "resources", "startup"},
        {"models"},
        {"methods"},
        {"option_sources", "checkpoints"},
        {"early"},
        {"help_text"},
        {"options", "run_folder"},
        {"optimizers", "features"},
        {"launch", "datasets", "cautions"},
        {"loop"},
        {"evaluation"},
        {"rehearsal", "execution"},
        {"run"},
    ],
}


def modules(path: Path) -> set[str]:
    """Full names of the modules that a file imports, a `from package import module` included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_those_below_it(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        forbidden = (FOLDERS.keys() | {"tests"}) - FOLDERS[folder] | FOREIGN.get(folder, set())
        assert not {name.split(".")[0] for name in modules(path)} & forbidden, path.relative_to(ROOT)


@pytest.mark.parametrize("folder", FLOORS)
def test_a_room_imports_only_those_below_it(folder: str) -> None:
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS[folder]) for room in rooms}
    top = len(FLOORS[folder])
    assert set(floor_of) <= {path.stem for path in (ROOT / folder).iterdir()}
    for path in sorted((ROOT / folder).rglob("*.py")):
        own = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        for name in modules(path):
            first, _, rest = name.partition(".")
            room = rest.split(".")[0]
            if first == folder and room != own:
                assert floor_of.get(room, top) < floor_of.get(own, top + 1), f"{path.relative_to(ROOT)}: {name}"


@pytest.mark.parametrize("folder", FLOORS)
def test_every_room_says_what_it_is_for_and_what_it_may_import(folder: str) -> None:
    for room in sorted(path for path in (ROOT / folder).iterdir() if (path / "__init__.py").exists()):
        words = (ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or "").lower()
        assert "import" in words, f"{room.relative_to(ROOT)}: its first paragraph says what it is for and may import"


def test_no_class_of_train_inherits_deeper_than_two() -> None:
    bases: dict[str, list[str]] = {}
    for path in (ROOT / "train").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]

    def depth(name: str) -> int:
        return max((1 + depth(base) for base in bases.get(name, []) if base in bases), default=0)

    assert {name: depth(name) for name in bases if depth(name) > MAX_DEPTH} == {}
