"""The folders import downwards only: tools → train → pipeline → shards."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "shards": {"shards"},
    "pipeline": {"shards", "pipeline"},
    "train": {"shards", "pipeline", "train"},
    "tools": {"shards", "pipeline", "train", "tools"},
}
FOREIGN = {"shards": {"torch", "nvidia"}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_those_below_it(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        forbidden = (ALLOWED.keys() | {"tests"}) - ALLOWED[folder] | FOREIGN.get(folder, set())
        assert not imported(path) & forbidden, path.relative_to(ROOT)
