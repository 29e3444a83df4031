"""Starting training in separate processes, wherever this project is installed."""

import os
import sys
from pathlib import Path

from train.resources import ACCELERATE_CONFIG

_CODE = Path(__file__).resolve().parents[1]


def train_command(processes: int) -> list[str]:
    """The training command without its options; more than one process goes through Accelerate's launcher."""
    if processes == 1:
        return [sys.executable, "-m", "train"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE_CONFIG)]
    return [*launcher, "--num_processes", str(processes), "-m", "train"]


def environment() -> dict[str, str]:
    """The environment in which `train` is this project's package, not a `train.py` in the current folder.

    With `-m` Python searches the current folder first. PYTHONSAFEPATH prevents that, also in the launcher's children,
    and PYTHONPATH points to this project, whether or not it is installed.
    """
    paths = [str(_CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}
