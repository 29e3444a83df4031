"""Finds methods and their parts: one file each, named like its file; nothing has to be registered.

Those of one's own are named MODULE:CLASS, for a module that Python finds, or a file in the current folder.
"""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path
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
    if ":" in name:
        return own(name, kind)
    known = names(package, kind)
    if name not in known:
        raise ValueError(f"method.{kind.__name__.lower()} {name!r} is unknown; expected one of {', '.join(known)}")
    found = _defined(package, name, kind)
    if len(found) != 1:
        raise RuntimeError(f"{package.__name__}.{name} defines {len(found)} of {kind.__name__}, expected one")
    return found[0]


def own(name: str, kind: type[Found]) -> type[Found]:
    """The class of a name MODULE:CLASS.

    Raises:
        ValueError: there is no such module or class, or the class is of another kind.
    """
    module_name, _, class_name = name.partition(":")
    found = getattr(_own_module(module_name), class_name, None)
    if not isinstance(found, type) or not issubclass(found, kind) or not hasattr(found, "Options"):
        raise ValueError(f"{name}: expected a {kind.__name__} with `Options` of this name in {module_name}")
    return found


def _own_module(name: str) -> ModuleType:
    """An installed module, else a file of the current folder, which is not searched for anything else."""
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


def _defined(package: ModuleType, name: str, kind: type) -> list[type]:
    module = importlib.import_module(f"{package.__name__}.{name}")
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    # What has no options of its own (`Composed`, bases of several) is no choice.
    return [c for c in own if issubclass(c, kind) and not inspect.isabstract(c) and hasattr(c, "Options")]
