"""The tables of recipes/README.md: every recipe with its published and measured accuracy and its command.

`python -m tools.recipe_page` writes them; a test checks that they are up to date.
"""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

from tools.markdown import markdown
from tools.paper_tables import RECIPES_FOLDER, read_tables

PAGE = RECIPES_FOLDER / "README.md"
RESULTS_FOLDER = RECIPES_FOLDER.resolve().parent / "benchmarks" / "results"
_COMMAND = re.compile(r"^# +(?:accelerate launch|python -m) ", re.MULTILINE)
_MARKED = re.compile(r"(<!-- tables -->\n).*(<!-- end of tables -->)", re.DOTALL)


def main() -> int:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def page(text: str) -> str:
    """The page with tables of the current recipes, published numbers and results."""
    return _MARKED.sub(lambda m: f"{m[1]}\n{tables()}\n{m[2]}", text)


def tables() -> str:
    """One table per data set, one row per recipe."""
    published = _published()
    parts = []
    for folder in sorted(path for path in RECIPES_FOLDER.iterdir() if path.is_dir()):
        rows = [_row(path, published) for path in sorted(folder.glob("*.yaml"))]
        parts.append(f"### {folder.name}\n\n" + markdown(("recipe", "what", "published", "measured", "command"), rows))
    return "\n".join(parts)


def _row(path: Path, published: dict[str, str]) -> tuple[str, ...]:
    name = f"{path.parent.name}/{path.stem}"
    text = path.read_text(encoding="utf-8")
    what = " ".join(_COMMAND.split(text, maxsplit=1)[0].replace("#", " ").split()).rstrip(".")
    measured = _measured(name, yaml.safe_load(text).get("epochs"))
    return path.stem, what, published.get(name, "–"), measured, f"`longtail train --recipe {name}`"


def _published() -> dict[str, str]:
    """By recipe: All in percent for the rows that it produces without further options, and their tables."""
    found: dict[str, list[str]] = {}
    for number, table in read_tables().items():
        for row in table.rows:
            if not row.overrides and "all" in row.published:
                found.setdefault(row.recipe, []).append(f"{row.published['all']:.1f} ({number})")
    return {recipe: ", ".join(dict.fromkeys(cells)) for recipe, cells in found.items()}


def _measured(name: str, epochs: int | None) -> str:
    """Mean of All over the committed results of a recipe's seeds, with the number of epochs for shorter runs."""
    of_recipe = re.compile(rf"{re.escape(name.replace('/', '-'))}-(seed\d+|\d+-epochs.*)")
    results = [_read(path) for path in sorted(RESULTS_FOLDER.glob("*.json")) if of_recipe.fullmatch(path.stem)]
    by_epochs: dict[int, list[float]] = {}
    for result in results:
        by_epochs.setdefault(result["options"]["epochs"], []).append(result["test"]["last"]["all"])
    cells = [
        f"{statistics.mean(values):.1f}{f' (n = {len(values)})' if len(values) > 1 else ''}"
        f"{'' if length == epochs else f' in {length} epochs'}"
        for length, values in sorted(by_epochs.items())
    ]
    return ", ".join(cells) or "–"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
