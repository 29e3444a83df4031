"""Training methods. Most are a mixing, an objective and a stage put together; some are whole, in a file of their own.

`find_method` knows them all by name. May import `train.models`, `train.losses`, `train.inputs` and the schedules.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from inspect import get_annotations
from types import ModuleType
from typing import Any

from train.methods import mixings, objectives, registry, stages
from train.methods.base import Method, MethodContext
from train.methods.composed import Composed, PartTypes, composed_options
from train.methods.parts import Mixing, Objective, Stage
from train.methods.presets import METHOD_PRESETS

KINDS: Mapping[str, tuple[ModuleType, type[Any]]] = {
    "mixing": (mixings, Mixing),
    "objective": (objectives, Objective),
    "stage": (stages, Stage),
}


@dataclass(frozen=True)
class MethodSpec:
    """A method by name, before a run tells it anything.

    Attributes:
        name: as users write it.
        summary: one line.
        Options: frozen dataclass that recipe and command line fill.
        make: from options and context to the method; raises ValueError where parts do not go together.
        without: options that one may expect, and why they do not exist.
    """

    name: str
    summary: str
    Options: type
    make: Callable[[Any, MethodContext], Method]
    without: Mapping[str, str]


def method_names() -> list[str]:
    """Every name that `find_method` takes."""
    return sorted({*METHOD_PRESETS, *whole_names()})


def whole_names() -> list[str]:
    """The methods that are not put together from parts."""
    return registry.names(sys.modules[__name__], Method)


def find_method(name: str, chosen: Mapping[str, Any] | None = None) -> MethodSpec:
    """The method of a name.

    Args:
        name: one of `method_names`.
        chosen: may have other parts than the preset's, under "mixing", "objective" and "stage"; the rest is ignored.

    Raises:
        ValueError: an unknown name or part, or a part chosen for a method that is whole.
    """
    parts = {kind: str(value) for kind, value in (chosen or {}).items() if kind in KINDS and value is not None}
    if ":" in name:
        return _own(name, parts)
    if name in METHOD_PRESETS:
        return _composed(name, parts)
    if name not in whole_names():
        raise ValueError(f"method.name {name!r} is unknown; expected one of {', '.join(method_names())}")
    if parts:
        raise ValueError(
            f"method.{next(iter(parts))}: {name} is a method of its own, not put together from parts; choose one of "
            f"{', '.join(METHOD_PRESETS)}"
        )
    whole = registry.find(sys.modules[__name__], name, Method)  # type: ignore[type-abstract]
    summary = (sys.modules[whole.__module__].__doc__ or "").splitlines()[0].rstrip(".")
    return MethodSpec(name, summary, whole.Options, whole, whole.without)


def _own(name: str, parts: Mapping[str, str]) -> MethodSpec:
    """A method, or a part of one in an otherwise plain method, of a module that is not this project's."""
    found = registry.own(name, object)
    for kind, (_, base) in KINDS.items():
        if issubclass(found, base):
            return _composed("vanilla", {kind: name, **parts}, name)
    if not issubclass(found, Method):
        raise ValueError(f"method.name {name}: expected a Method, Mixing, Objective or Stage, found {found.__mro__[1]}")
    summary = (found.__doc__ or "").partition("\n")[0].rstrip(".")
    return MethodSpec(name, summary, found.Options, found, found.without)


def _composed(preset_name: str, parts: Mapping[str, str], name: str | None = None) -> MethodSpec:
    preset = METHOD_PRESETS[preset_name]
    names = {kind: parts.get(kind, getattr(preset, kind)) for kind in KINDS}
    types: PartTypes = (
        registry.find(mixings, names["mixing"], Mixing),  # type: ignore[type-abstract]
        registry.find(objectives, names["objective"], Objective),  # type: ignore[type-abstract]
        registry.find(stages, names["stage"], Stage),
    )
    have = {f.name for part in types for f in fields(part.Options)}
    # A preset's own defaults belong to its parts; another part in their place has its own.
    defaults = {option: value for option, value in preset.defaults.items() if option in have}
    without = {option: why for part in types for option, why in part.without.items() if option not in have}
    return MethodSpec(
        name or preset_name,
        preset.summary,
        composed_options(names, types, defaults),
        partial(Composed, parts=types),
        {**_elsewhere(have), **without},
    )


def _elsewhere(have: set[str]) -> dict[str, str]:
    """Options that these parts do not have but others do, and how to get them."""
    owners: dict[str, list[str]] = {}
    for kind, (package, base) in KINDS.items():
        for name in registry.names(package, base):
            for option in get_annotations(registry.find(package, name, base).Options):
                owners.setdefault(option, []).append(f"--method.{kind} {name}")
    return {option: f"an option of {' or '.join(where)}" for option, where in owners.items() if option not in have}
