"""Alternative ways to write an option: old names, and lists without brackets."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

STILL_TAKEN = {"data.recipe": "data.preset"}
# Refused, because their values now have a different meaning.
RENAMED = {
    "method.start_data_aug": "method.plain_first, which is the old value plus 1",
    "method.end_data_aug": "method.plain_last",
    "method.drw_start": "method.drw_from_epoch",
    "method.meta_start": "method.meta_from_epoch",
    "method.reweight_epoch": "method.reweight_from_epoch",
}
_NOTHING = {"", "none", "null", "no", "off"}


def current_arguments(arguments: Sequence[str], lists: Collection[str]) -> list[str]:
    """A command line with current names, and with brackets around the values of these list options.

    Raises:
        ValueError: an option has been renamed.
    """
    result: list[str] = []
    pending: list[str] | None = None  # values of the last list option
    for argument in arguments:
        if not argument.startswith("--"):
            (result if pending is None else pending).append(argument)
            continue
        result += _as_list(pending)
        name, equals, value = argument[2:].partition("=")
        name = current_name(name)
        pending = None
        if name in lists:
            result.append(f"--{name}")
            pending = [value] if equals else []
        else:
            at_home = name == "recipe" and value.startswith("~")  # a shell replaces ~ only after a space
            result.append(f"--{name}{equals}{Path(value).expanduser() if at_home else value}")
    return result + _as_list(pending)


def current_recipe(content: Any, lists: Collection[str]) -> Any:
    """A recipe's content with current names.

    Raises:
        ValueError: an option has been renamed.
    """
    if not isinstance(content, Mapping):
        return content
    result: dict[str, Any] = {}
    for name, value in _leaves(content):
        *sections, last = current_name(name).split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
        in_brackets = ".".join((*sections, last)) in lists and isinstance(value, str | int | float)
        target[last] = [value] if in_brackets else value
    return result


def current_name(name: str) -> str:
    """The current name.

    Raises:
        ValueError: the option's value now has a different meaning.
    """
    if name in RENAMED:
        raise ValueError(f"{name} is now called {RENAMED[name]}")
    if name in STILL_TAKEN:
        _warn(name)
        return STILL_TAKEN[name]
    return name


@cache  # a recipe is read twice: for its method, then for its options
def _warn(name: str) -> None:
    logger.warning("%s is now called %s", name, STILL_TAKEN[name])


def _as_list(values: list[str] | None) -> list[str]:
    if not values:
        return []  # not a list option; otherwise the parser reports a missing value
    if len(values) == 1 and values[0].startswith("["):
        return values
    if len(values) == 1 and values[0].lower() in _NOTHING:
        return ["[]"]
    return [f"[{','.join(values)}]"]


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
