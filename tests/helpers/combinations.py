"""Writes the table of docs/combinations.md by asking every combination whether it is refused.

python -m tests.helpers.combinations
"""

import re
from dataclasses import fields
from itertools import product
from pathlib import Path

from tests.helpers.steps import context, make_method
from tools.markdown import markdown
from train.methods.registry import KINDS, find_method, part_names
from train.models.build import ModelOptions

# Options that let a part run on four classes and a small network.
SMALL = {"hard_classes": 2, "tuned": "head", "start": "random"}
PAGE = Path(__file__).parents[2] / "docs" / "combinations.md"


def refusal(mixing: str, objective: str, stage: str) -> str | None:
    """Why a combination is refused, or None."""
    try:
        chosen = {"mixing": mixing, "objective": objective, "stage": stage}
        have = {option.name for option in fields(find_method("vanilla", chosen).Options)}
        small = {name: value for name, value in SMALL.items() if name in have}
        method = make_method("vanilla", context((9, 4, 2, 2)), **chosen, **small)
        method.build_model(ModelOptions(width=4, init_from=Path("first.pt") if stage != "whole" else None), seed=0)
    except ValueError as error:
        return str(error).partition("is refused: ")[2] or str(error)
    return None


def table() -> str:
    """The table, and its reasons."""
    parts = {kind: part_names(package, base) for kind, (package, base) in KINDS.items()}
    reasons: dict[str, str] = {}
    rows = []
    for mixing, objective in product(parts["mixing"], parts["objective"]):
        found = [refusal(mixing, objective, stage) for stage in parts["stage"]]
        cells = ["yes" if why is None else reasons.setdefault(why, str(len(reasons) + 1)) for why in found]
        rows.append([mixing, objective, *cells])
    head = markdown(["mixing", "objective", *parts["stage"]], rows)
    return (
        head
        + "\nReasons for the refusals, by number:\n\n"
        + "\n".join(f'{number}. "{why}"' for why, number in reasons.items())
        + "\n"
    )


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = r"(## Mixing × objective × stage\n\n).*?(\n## Other combinations that are possible)"
    PAGE.write_text(re.sub(section, lambda m: m[1] + table() + m[2], page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
