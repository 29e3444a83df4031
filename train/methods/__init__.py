"""One file a method: what it reads, what it computes in a step, what it keeps between steps."""

import importlib
import pkgutil

from train.methods.base import Method


def method_names() -> list[str]:
    """Every method that can be trained: the modules of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def method_class(name: str) -> type[Method]:
    """The method of a module of this folder; its file is all there is to register."""
    if name not in method_names():
        raise ValueError(f"method.name {name!r} is unknown; expected one of {', '.join(method_names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    defined = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    methods = [c for c in defined if issubclass(c, Method)]
    if len(methods) != 1:
        raise RuntimeError(f"train/methods/{name}.py defines {len(methods)} methods, expected one")
    return methods[0]
