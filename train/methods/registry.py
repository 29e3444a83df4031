"""Finds methods and their parts by name: one file each, named like its file; no registration is needed.

User-defined ones are named MODULE:CLASS, for an importable module or a file in the current folder.
"""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from inspect import get_annotations, isabstract
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import train.methods
from train.methods import mixings, objectives, stages
from train.methods.base import MethodContext
from train.methods.method import Method, PartTypes, composed_options
from train.methods.parts import Mixing, Objective, Part, Stage
from train.methods.presets import METHOD_PRESETS

KINDS: Mapping[str, tuple[ModuleType, type[Part]]] = {
    "mixing": (mixings, Mixing),
    "objective": (objectives, Objective),
    "stage": (stages, Stage),
}
Found = TypeVar("Found", bound=Part)


@dataclass(frozen=True)
class MethodSpec:
    """A method by name, independent of a run.

    Attributes:
        name: as users write it.
        summary: one line.
        Options: frozen dataclass filled from recipe and command line.
        make: creates the method from options and context; raises ValueError if parts cannot be combined.
        without: options that users might expect, and why they do not exist.
    """

    name: str
    summary: str
    Options: type
    make: Callable[[Any, MethodContext], Method]
    without: Mapping[str, str]


def method_names() -> list[str]:
    """Every name that `find_method` accepts."""
    return sorted({*METHOD_PRESETS, *whole_names()})


def whole_names() -> list[str]:
    """The methods that are not composed of parts."""
    return part_names(train.methods, Objective)


def part_names(package: ModuleType, base: type[Any]) -> list[str]:
    """The modules of a package that define a part of this kind, sorted."""
    modules = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    return [name for name in modules if _defined(package, name, base)]


def find_method(name: str, chosen: Mapping[str, Any] | None = None) -> MethodSpec:
    """The method with a name.

    Args:
        name: one of `method_names`, or MODULE:CLASS of a part, which means that part in an otherwise plain method.
        chosen: may override the preset's parts under "mixing", "objective" and "stage"; the rest is ignored.

    Raises:
        ValueError: an unknown name or part, or a part chosen for a whole method.
    """
    parts = {kind: str(value) for kind, value in (chosen or {}).items() if kind in KINDS and value is not None}
    if name in METHOD_PRESETS:
        return _composed(name, parts, name)
    if ":" in name:
        found = _find_own(name, (Mixing, Objective, Stage))
        if not issubclass(found, Objective) or found.own_stage is None:
            kind = next(kind for kind, (_, base) in KINDS.items() if issubclass(found, base))
            return _composed("vanilla", {kind: name, **parts}, name)
    elif name in whole_names():
        found = find_part(train.methods, name, Objective)
    else:
        raise ValueError(f"method.name {name!r} is unknown; expected one of {', '.join(method_names())}")
    if parts:
        raise ValueError(
            f"method.{next(iter(parts))}: {name} is a whole method, not composed of parts; choose one of "
            f"{', '.join(METHOD_PRESETS)}"
        )
    summary = (sys.modules[found.__module__].__doc__ or found.__doc__ or "").partition("\n")[0].rstrip(".")
    make = partial(Method, parts=(Mixing, found, found.own_stage or Stage))
    return MethodSpec(name, summary, found.Options, make, found.without)


def _composed(preset_name: str, chosen: Mapping[str, str], name: str) -> MethodSpec:
    preset = METHOD_PRESETS[preset_name]
    names = {kind: chosen.get(kind, getattr(preset, kind)) for kind in KINDS}
    types: PartTypes = (
        find_part(mixings, names["mixing"], Mixing),
        find_part(objectives, names["objective"], Objective),
        find_part(stages, names["stage"], Stage),
    )
    have = {f.name for part in types for f in fields(part.Options)}
    # A preset's own defaults apply to its parts; a replacement part has its own.
    defaults = {option: value for option, value in preset.defaults.items() if option in have}
    without = {option: why for part in types for option, why in part.without.items() if option not in have}
    make = partial(Method, parts=types)
    return MethodSpec(
        name, preset.summary, composed_options(names, types, defaults), make, {**_elsewhere(have), **without}
    )


def _elsewhere(have: set[str]) -> dict[str, str]:
    """Options that other parts have but these do not, and how to get them."""
    owners: dict[str, list[str]] = {}
    for kind, (package, base) in KINDS.items():
        for name in part_names(package, base):
            for option in get_annotations(find_part(package, name, base).Options):
                owners.setdefault(option, []).append(f"--method.{kind} {name}")
    return {option: f"an option of {' or '.join(where)}" for option, where in owners.items() if option not in have}


def find_part(package: ModuleType, name: str, base: type[Found]) -> type[Found]:
    """The single part of this kind in a module of the package, or a MODULE:CLASS.

    Raises:
        ValueError: there is no such module; the message lists the existing ones.
        RuntimeError: the module defines several.
    """
    if ":" in name:
        return _find_own(name, (base,))
    known = part_names(package, base)
    if name not in known:
        raise ValueError(f"method.{base.__name__.lower()} {name!r} is unknown; expected one of {', '.join(known)}")
    found = _defined(package, name, base)
    if len(found) != 1:
        raise RuntimeError(f"{package.__name__}.{name} defines {len(found)} of {base.__name__}, expected one")
    return found[0]


def _defined(package: ModuleType, name: str, base: type[Found]) -> list[type[Found]]:
    module = importlib.import_module(f"{package.__name__}.{name}")
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    # Classes without their own options (`TwoStreams`, a common base) cannot be chosen.
    return [c for c in own if issubclass(c, base) and c is not base and "Options" in vars(c) and not isabstract(c)]


def _find_own(name: str, bases: tuple[type[Found], ...]) -> type[Found]:
    """The class for a name MODULE:CLASS.

    Raises:
        ValueError: there is no such module or class, or the class is of a different kind.
    """
    module_name, _, class_name = name.partition(":")
    found = getattr(_own_module(module_name), class_name, None)
    if not isinstance(found, type) or not issubclass(found, bases) or not hasattr(found, "Options"):
        expected = " or ".join(base.__name__ for base in bases)
        raise ValueError(f"{name}: expected {expected} of this name, with `Options`, in {module_name}")
    return found


def _own_module(name: str) -> ModuleType:
    """An installed module, else a file in the current folder, which is not searched for anything else."""
    if name in sys.modules:
        return sys.modules[name]
    file = Path(*name.split(".")).with_suffix(".py")
    if file.is_file():
        spec = importlib.util.spec_from_file_location(name, file.absolute())
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"method: no module {name!r} is installed, and there is no file {file} here") from error
