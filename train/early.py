"""Checks of a run's command line before anything heavy is imported: `--help`, wrong names and plain values.

Only certain mistakes are refused here. `train.options.parse` checks everything else.
"""

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from train.methods.presets import METHOD_PRESETS, PART_FOLDERS
from train.option_forms import current_recipe
from train.option_sources import Option, method_options, part_names, run_options, whole_methods
from train.resources import find_recipe

USAGE_STATUS = 2
# Names used by other programs, and the corresponding ones here.
_OTHER_NAMES = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "optimizer": "optimizer.name",
    "model": "model.name",
    "method": "method.name",
    "loss": "method.loss",
    "output": "run_dir",
    "out": "run_dir",
    "batch": "batch_size",
    "data": "data.train",
    "fp16": "mixed_precision",
    "amp": "mixed_precision",
    "workers": "data.decode_threads",
    "num_workers": "data.decode_threads",
}
CHOICES = ("name", *PART_FOLDERS)  # of a method: they decide which options there are


class OptionError(ValueError):
    """An invalid option."""


def normalised(arguments: Sequence[str]) -> list[str]:
    """The command line with "_" for "-" in option names, and included recipes replaced by their files.

    A switch without a value (`--dry-run`) is on.

    Raises:
        FileNotFoundError: a recipe is neither a file nor an included one.
    """
    result: list[str] = []
    switches = {f"--{name}" for name, option in {**run_options(), **method_options()}.items() if option.type == "bool"}
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and len(name) > 2:
            name = "--" + name[2:].replace("-", "_")
            argument = f"{name}{equals}{_recipe(value) if name == '--recipe' and equals else value}"
            alone = not equals and "".join(arguments[number + 1 : number + 2])[:2] in ("", "--")
            argument += "=true" * (alone and name in switches)
        elif result and result[-1] == "--recipe":
            argument = _recipe(argument)
        result.append(argument)
    return result


def _recipe(text: str) -> str:
    return text if text.startswith("~") else str(find_recipe(text))


def check(arguments: Sequence[str], forms: Mapping[str, str]) -> None:
    """Refuse unknown option names, and values that are clearly of the wrong type.

    Args:
        arguments: a normalised command line.
        forms: other option names, which are renamed or explained later.

    Raises:
        OptionError: the first mistake, with similar names.
    """
    method = chosen_method(arguments)
    is_own = any(":" in name for name in method.values())
    known: dict[str, Option] = {**run_options(), **method_options()}
    names = {*known, "recipe", "method.name", "help", *forms}
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or name == "--":
            continue
        name = name[2:]
        if name not in names:
            if is_own and name.startswith("method."):
                continue
            raise OptionError(_unknown(name, sorted(names)))
        following = arguments[number + 1 :]
        values = [value] if equals else following[:1]
        if name in known and values and not (values[0].startswith("--") and not equals):
            _check_value(known[name], values[0])
    _check_method(method)


def _unknown(name: str, names: Sequence[str]) -> str:
    if name in _OTHER_NAMES and _OTHER_NAMES[name] in names:
        similar = [_OTHER_NAMES[name]]
    else:
        ends = [known for known in names if known.rpartition(".")[2] == name.rpartition(".")[2]]
        similar = ends[:2] or difflib.get_close_matches(name, names, 2, 0.6)
        similar = similar or [known for known in names if known.startswith(name)][:2]
    hint = f"did you mean {' or '.join(f'--{s}' for s in similar)}?" if similar else "--help lists the options"
    return f"--{name} is not an option; {hint}"


def _check_value(option: Option, text: str) -> None:
    kinds = [kind.strip() for kind in re.split(r"\|(?![^\[]*\])", option.type)]
    if text.lower() in ("null", "none", "~") and "None" in kinds:
        return
    literal = next((kind for kind in kinds if kind.startswith("Literal[")), None)
    if literal is not None and len([k for k in kinds if k != "None"]) == 1:
        choices = [str(choice) for choice in ast.literal_eval(f"[{literal[8:-1]}]")]
        if text not in choices and yaml_word(text) not in choices:
            similar = difflib.get_close_matches(text, choices, 1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise OptionError(f"--{option.name} is {text!r}, expected one of {', '.join(choices)}{hint}")
    for kind, expected, pattern in (
        ("int", "a whole number", r"[+-]?\d[\d_]*(e\+?\d+)?"),
        ("float", "a number", r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?\.?(inf|nan)"),
        ("bool", "true or false", r"true|false|yes|no|on|off"),
    ):
        if [k for k in kinds if k != "None"] == [kind] and not re.fullmatch(pattern, text, re.I):
            raise OptionError(f"--{option.name} is {text!r}, expected {expected}")


def yaml_word(text: str) -> str:
    """How YAML's booleans are written in a list of choices: "no" is one of them."""
    return {"false": "no", "true": "yes"}.get(text.lower(), text)


def _check_method(method: Mapping[str, str]) -> None:
    name = method.get("name", "cmo")
    names = [*METHOD_PRESETS, *whole_methods()]
    if ":" not in name and name not in names:
        similar = difflib.get_close_matches(name, names, 2)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise OptionError(f"method.name {name!r} is unknown; expected one of {', '.join(sorted(names))}{hint}")
    for kind in PART_FOLDERS:
        part = method.get(kind)
        if part is not None and ":" not in part and part not in part_names(kind):
            raise OptionError(f"method.{kind} {part!r} is unknown; expected one of {', '.join(part_names(kind))}")


def chosen_method(arguments: Sequence[str]) -> dict[str, str]:
    """Name and parts of the method, by "name", "mixing", …: from the command line, else from the recipes."""
    chosen: dict[str, str] = {}
    given: dict[str, str] = {}
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        value = value if equals else "".join(arguments[number + 1 : number + 2])
        if name == "--recipe" and Path(value).is_file():
            chosen |= method_of(_read(Path(value)))
        elif name.startswith("--method.") and name[9:] in CHOICES:
            given[name[9:]] = value
    return chosen | given


def _read(recipe: Path) -> Any:
    """A recipe's content with current names; None if it cannot be read, which the parser then reports."""
    try:
        return current_recipe(yaml.safe_load(recipe.read_text(encoding="utf-8")), ())
    except (OSError, ValueError, yaml.YAMLError):
        return None


def method_of(content: Any) -> dict[str, str]:
    """Name and parts of the method in the content of a recipe."""
    method = content.get("method") if isinstance(content, Mapping) else None
    return {k: str(v) for k, v in method.items() if k in CHOICES} if isinstance(method, Mapping) else {}
