"""The origin of numbers: commit of the code, versions of the packages, hardware."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_VERSIONED = (
    "longtail",
    "torch",
    "accelerate",
    "numpy",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "timm",
    "pillow",
)
_CODE = Path(__file__).resolve().parents[1]


def commit() -> str | None:
    """Commit of the code, with "+changes" if files differ from it; None outside a checkout of this project.

    If the environment is inside another project's repository, git returns *that* project's commit, so git's top-level
    folder must be the one that contains this package.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != _CODE:
        return None
    return _git("describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_CODE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and the packages that numbers can depend on."""
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """The device that trains, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads"
