"""The available options, read from the source code of their classes without running it.

Torch and timm take seconds to import, and method options are defined next to code that needs both. Misspelt options and
`--help` should not wait for that, so this module reads names, types, defaults and docstrings from the syntax tree. Its
result is only preliminary: `train.options.parse` checks everything again with the classes themselves.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import docstring_parser

from train.methods.presets import PART_FOLDERS

_TRAIN = Path(__file__).parent


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: as on the command line, without dashes: "optimizer.lr", "epochs".
        type: its annotation, with aliases of Literal expanded.
        default: as in the source; None if there is none.
        text: its line of the docstring.
    """

    name: str
    type: str
    default: str | None
    text: str


@dataclass(frozen=True)
class _Class:
    node: ast.ClassDef
    file: Path


@dataclass(frozen=True)
class _Sources:
    """Classes by name, `Options` classes by file, files of whole methods, and type aliases."""

    classes: dict[str, _Class] = field(default_factory=dict)
    options_of: dict[Path, str] = field(default_factory=dict)
    whole: set[Path] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)


@cache
def _sources() -> _Sources:
    found = _Sources()
    for path in sorted(_TRAIN.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.classes[node.name] = _Class(node, path)
                settings = dict(_settings(node))
                if "Options" in settings:
                    found.options_of[path] = settings["Options"]
                if settings.get("own_stage", "None") != "None":
                    found.whole.add(path)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                text = ast.unparse(node.value)
                if text.startswith("Literal["):
                    found.aliases[node.targets[0].id] = text
    return found


def _settings(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Name and value, as written, of each line `NAME = VALUE` in a class body."""
    for line in node.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value:
            target = line.targets[0] if isinstance(line, ast.Assign) else line.target
            yield ast.unparse(target), ast.unparse(line.value)


def _options(class_name: str, prefix: str) -> dict[str, Option]:
    """The options of a class in `train` by name, those of its bases first."""
    known = _sources().classes.get(class_name)
    if known is None:
        return {}
    found: dict[str, Option] = {}
    for base in known.node.bases:
        found |= _options(ast.unparse(base), prefix)
    described = docstring_parser.parse(ast.get_docstring(known.node) or "").params
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in described}
    for line in known.node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            name, kind = line.target.id, ast.unparse(line.annotation)
            default = ast.unparse(line.value) if line.value is not None else None
            inherited = found.get(f"{prefix}{name}")
            text = texts.get(name) or (inherited.text if inherited else "")
            found[f"{prefix}{name}"] = Option(f"{prefix}{name}", _sources().aliases.get(kind, kind), default, text)
    return found


@cache
def run_options() -> Mapping[str, Option]:
    """Every option that does not depend on the method, by name."""
    tree = ast.parse((_TRAIN / "options.py").read_text(encoding="utf-8"))
    found: dict[str, Option] = {}
    for node in tree.body:
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_SECTIONS" and isinstance(value, ast.Dict):
            for section, name in zip(value.keys, value.values, strict=True):
                assert section is not None
                found |= _options(ast.unparse(name), f"{ast.literal_eval(section)}.")
    return found | _options("RunOptions", "")


def whole_methods() -> list[str]:
    """The methods that are not composed of parts, sorted."""
    return sorted(path.stem for path in _sources().whole)


def part_names(kind: str) -> list[str]:
    """The mixings, objectives or stages, sorted; kind is "mixing", "objective" or "stage"."""
    folder = _TRAIN / "methods" / PART_FOLDERS[kind]
    return sorted(path.stem for path in _sources().options_of if path.parent == folder)


def method_options(parts: Mapping[str, str] | None = None, whole: str | None = None) -> dict[str, Option]:
    """Options of a method: of these parts by kind, of a whole method, or, with neither, of all methods and parts."""
    methods = _TRAIN / "methods"
    if whole is not None:
        files = [methods / f"{whole}.py"]
    elif parts is not None:
        files = [methods / PART_FOLDERS[kind] / f"{name}.py" for kind, name in parts.items()]
    else:
        files = [path for path in _sources().options_of if methods in path.parents]
    found: dict[str, Option] = {}
    for path in files:
        found |= _options(_sources().options_of.get(path, ""), "method.")
    if whole is None:
        for kind in PART_FOLDERS:
            text = f"the {kind} of the method: {', '.join(part_names(kind))}"
            found[f"method.{kind}"] = Option(f"method.{kind}", "str", None, text)
    return found
