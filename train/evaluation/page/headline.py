"""The table at the top of a page: runs of one recipe as mean ± spread over seeds, and its published numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from train.evaluation.metrics import TITLES
from train.evaluation.page.run_data import RunData
from train.evaluation.spread import mean_and_spread

RECIPES_FOLDER = Path(__file__).parents[3] / "recipes"
_OF_CLASSES = ("worst", "harmonic")  # the page shows these per class
COLUMNS = {title: key for title, key in TITLES.items() if key not in _OF_CLASSES}


def rows(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """{"name", "seeds", "epochs", "weights", "cells", "published"}; two rows per family if "best" is not "last"."""
    families: dict[tuple[str, str], list[RunData]] = {}
    for run in runs:
        if run.measured:
            families.setdefault((run.family, kind(run)), []).append(run)
    found = []
    for (family, _), members in families.items():
        tests = [run.measured for run in members]
        options = [run.result["options"] for run in members]
        same = all(test["best"].get("epoch") == test["last"].get("epoch") for test in tests)
        for weights in ("last",) if same else ("last", "best"):
            numbers = [test[weights] for test in tests]
            found.append(
                {
                    "name": family,
                    "seeds": ", ".join(str(o["seed"]) for o in options),
                    "epochs": ", ".join(sorted({str(o["epochs"]) for o in options})),
                    "weights": weights_in_words(weights, members),
                    "cells": [mean_and_spread([n.get(key) for n in numbers]) for key in COLUMNS.values()],
                    "published": False,
                }
            )
        found += _published(family)
    return found


def kind(run: RunData) -> str:
    """What runs must share to be averaged: everything but seed, folder and how they were resumed."""
    own = ("seed", "run_dir", "resume", "trackers", "device")
    return str({name: value for name, value in run.result["options"].items() if name not in own})


def weights_in_words(weights: str, members: Sequence[RunData]) -> str:
    """Which weights a row is of."""
    tests = [run.measured[weights] for run in members]
    epochs = sorted({test["epoch"] for test in tests if test.get("epoch") is not None})
    shown = f"{weights}, epoch {', '.join(map(str, epochs))}" if epochs else weights
    if members[0].reported != "test":
        shown += f", on the {members[0].reported} set"
    selected_on = tests[0].get("selected_on")
    return f"{shown} (by {selected_on} set)" if weights == "best" and selected_on else shown


def _published(family: str) -> list[dict[str, Any]]:
    """Rows of the papers' tables that a run of this recipe, by name, reproduces."""
    path = RECIPES_FOLDER / "tables.yaml"
    if not path.is_file():
        return []
    found = []
    for number, table in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for row in table["rows"]:
            if row["recipe"].replace("/", "-") == family and not row.get("overrides"):
                cells = [mean_and_spread([row["published"].get(key)]) for key in COLUMNS.values()]
                name = f"published: {table['paper']}, table {number}, {row['name']}"
                row_of_paper = {"name": name, "seeds": "", "epochs": _recipe_epochs(row["recipe"]), "weights": ""}
                found.append({**row_of_paper, "cells": cells, "published": True})
    return found


def _recipe_epochs(recipe: str) -> str:
    content = yaml.safe_load((RECIPES_FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8"))
    return str(content.get("epochs", ""))


def differences(runs: Sequence[RunData]) -> list[str]:
    """Sentences on why the numbers of these runs are not comparable."""
    said = []
    finished = [run.result for run in runs if run.result]
    for what, values in {
        "training sets": {r.get("data", {}).get("train", {}).get("checksum") for r in finished},
        "test sets": {r.get("data", {}).get("test", {}).get("checksum") for r in finished},
        "rules for many, medium and few": {r.get("group_rule") for r in finished},
    }.items():
        if len(values) > 1:
            said.append(f"The runs have {len(values)} different {what}: their numbers are not comparable.")
    if len({tuple(run.shown["classes"]["name"]) for run in runs if "classes" in run.shown}) > 1:
        said.append(
            "The runs have different classes: each has its own table, and dots do not refer to the same classes."
        )
    return said
