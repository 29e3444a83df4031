"""Published tables as data: the recipe for each row, and the numbers published for it (recipes/tables.yaml)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from train.resources import RECIPES_FOLDER

TABLES_FILE = RECIPES_FOLDER / "tables.yaml"
NUMBERS = ("all", "many", "medium", "few")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        recipe: a file in recipes/, as DATASET/METHOD without its suffix.
        published: accuracy in percent for "all", "many", "medium", "few", as far as published.
        overrides: options in addition to the recipe's, as on the command line.
        first_stage: recipe whose last checkpoint the run starts from; None for single-stage runs.
        single_expert: published for the best expert of an ensemble only, not for all of them together.
        source: "paper" (measured by its authors), "cited" (from the method's paper) or "copied" (from a third).
        note: what a reader needs to know to compare with the published number.
    """

    name: str
    recipe: str
    published: dict[str, float]
    overrides: dict[str, Any] = field(default_factory=dict)
    first_stage: str | None = None
    single_expert: bool = False
    source: str = "paper"
    note: str = ""

    def arguments(self) -> list[str]:
        """Command line of `python -m train`, without seed, folder and first stage."""
        return [f"--recipe={RECIPES_FOLDER / self.recipe}.yaml", *as_arguments(self.overrides)]

    @property
    def run_name(self) -> str:
        """Name of the run; rows that need the same run share it."""
        parts = (f"{key.rpartition('.')[2]}={value}" for key, value in sorted(self.overrides.items()))
        return "-".join((self.recipe.replace("/", "-"), *(part.replace("/", "_") for part in parts)))


@dataclass(frozen=True)
class Table:
    """A paper's table.

    Attributes:
        paper: the paper it comes from.
        rows: the rows that can be run here.
        missing: name, published numbers and reason for the rows that cannot.
    """

    title: str
    paper: str
    rows: tuple[Row, ...]
    missing: tuple[dict[str, Any], ...]


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as command line arguments."""
    return [f"--{name}={value}" for name, value in options.items()]


def read_tables(path: Path = TABLES_FILE) -> dict[str, Table]:
    """All tables by their number in the paper.

    Raises:
        ValueError: a table has no title or paper, a row has an unknown key, or two rows of a table have the same name.
    """
    tables = {}
    for number, content in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        try:
            table = Table(
                content["title"],
                content["paper"],
                tuple(Row(**row) for row in content["rows"]),
                tuple(content.get("missing", ())),
            )
        except KeyError as error:
            raise ValueError(f"{path}: table {number} has no {error.args[0]}") from error
        except TypeError as error:
            raise ValueError(f"{path}: table {number}: {error}") from error
        if len({row.name for row in table.rows}) < len(table.rows):
            raise ValueError(f"{path}: table {number} has two rows with the same name")
        tables[str(number)] = table
    return tables
