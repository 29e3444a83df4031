"""Finds methods and their parts: one file each, named like its file; nothing has to be registered."""

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

Found = TypeVar("Found")


def names(package: ModuleType, kind: type) -> list[str]:
    """The modules of a package that define a `kind`, sorted."""
    modules = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    return [name for name in modules if _defined(package, name, kind)]


def find(package: ModuleType, name: str, kind: type[Found]) -> type[Found]:
    """The one `kind` of a module of the package.

    Raises:
        ValueError: there is no such module; the message lists those that there are.
        RuntimeError: it defines several.
    """
    known = names(package, kind)
    if name not in known:
        raise ValueError(f"method.{kind.__name__.lower()} {name!r} is unknown; expected one of {', '.join(known)}")
    found = _defined(package, name, kind)
    if len(found) != 1:
        raise RuntimeError(f"{package.__name__}.{name} defines {len(found)} of {kind.__name__}, expected one")
    return found[0]


def _defined(package: ModuleType, name: str, kind: type) -> list[type]:
    module = importlib.import_module(f"{package.__name__}.{name}")
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    # What has no options of its own (`Composed`, bases of several) is no choice.
    return [c for c in own if issubclass(c, kind) and not inspect.isabstract(c) and hasattr(c, "Options")]
