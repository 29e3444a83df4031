"""Lists of what is available: longtail methods, longtail presets, longtail recipes."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml

import train.methods
from pipeline.views.presets import PRESETS
from pipeline.views.view import OneOf
from shards.commandline import Parser
from train.methods.presets import METHOD_PRESETS, PART_FOLDERS
from train.models.backbone_views import BACKBONE_PRESETS
from train.option_sources import part_names, whole_methods
from train.resources import RECIPES_FOLDER, recipe_names

_METHODS = Path(train.methods.__file__).parent


def methods(arguments: Sequence[str] | None = None) -> int:
    """Print every method with one line and its paper, then the parts that methods are composed of."""
    parser = Parser(prog="longtail methods", description=methods.__doc__)
    parser.parse_args(arguments)
    summaries = {name: preset.summary for name, preset in METHOD_PRESETS.items()}
    summaries |= {name: _first_line(_METHODS / f"{name}.py") for name in whole_methods()}
    print("--method.name:")
    _print_lines(summaries)
    for kind, folder in PART_FOLDERS.items():
        print(f"\n--method.{kind}, in place of the method's own:")
        _print_lines({name: _first_line(_METHODS / folder / f"{name}.py") for name in part_names(kind)})
    print(
        "\nYour own: --method.name my_module:MyMethod. A method's options: `longtail train --help --method.name NAME`."
    )
    return 0


def presets(arguments: Sequence[str] | None = None) -> int:
    """Print every preset of augmentation, evaluation crop and normalisation."""
    Parser(prog="longtail presets", description=presets.__doc__).parse_args(arguments)
    print("--data.preset:")
    for name, preset in PRESETS.items():
        views = [preset.train] if preset.second is None else [preset.train, preset.second]
        print(f"  {name}: {preset.train.size} pixels, mean {_numbers(preset.normalization.mean)}")
        for view in views:
            for branch in view.views if isinstance(view, OneOf) else (view,):
                steps = [type(branch.geometry).__name__, *(type(o).__name__ for o in branch.operations)]
                print(f"      {'flip, ' if branch.flip_probability else ''}{', '.join(steps)}")
    print("\n  With size, filter, mean and standard deviation of the pretrained network (docs/finetuning.md):")
    for name, shown in BACKBONE_PRESETS.items():
        print(f"  {name}: {shown}")
    print("\nTo change one: --data.image_size, --data.mean, --data.std, or a YAML file based on it (docs/api.md).")
    return 0


def recipes(arguments: Sequence[str] | None = None) -> int:
    """Print the included recipes with their first lines, or the text of one."""
    parser = Parser(prog="longtail recipes", description=recipes.__doc__)
    parser.add_argument(
        "name", nargs="?", metavar="DATASET/METHOD", help="print this recipe; use `> mine.yaml` to edit a copy"
    )
    chosen = parser.parse_args(arguments).name
    if chosen is not None:
        if chosen.removesuffix(".yaml") not in recipe_names():
            parser.error(f"{chosen} is not a recipe; `longtail recipes` lists them")
        print((RECIPES_FOLDER / f"{chosen.removesuffix('.yaml')}.yaml").read_text(encoding="utf-8"), end="")
        return 0
    print("--recipe:")
    _print_lines({name: _heading(RECIPES_FOLDER / f"{name}.yaml") for name in recipe_names()})
    return 0


def _heading(recipe: Path) -> str:
    """The first line of the head comment, or the method if there is none."""
    text = recipe.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else str(yaml.safe_load(text).get("method"))


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0].rstrip(".")


def _print_lines(summaries: dict[str, str]) -> None:
    width = max(map(len, summaries)) + 2
    for name, summary in sorted(summaries.items()):
        print(textwrap.fill(summary, 110, initial_indent=f"  {name:{width}}", subsequent_indent=" " * (width + 2)))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
