"""The command that reproduces a run."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

_OF_THE_FOLDER = ("run_dir", "resume")


def command_line(options: Mapping[str, Any]) -> str:
    """`python -m train` with the resolved options of a run, one per line, except its folder."""
    arguments = [f"--{name}={_text(value)}" for name, value in _flat(options, "") if name not in _OF_THE_FOLDER]
    return " \\\n    ".join(["python -m train", *map(shlex.quote, arguments)])


def _flat(options: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found.append((f"{prefix}{name}", value))
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
