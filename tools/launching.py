"""How a training is started in processes of its own, wherever this project is installed."""

import os
import sys
from pathlib import Path

from train.resources import ACCELERATE_CONFIG

_CODE = Path(__file__).resolve().parents[1]


def train_command(processes: int) -> list[str]:
    """The command that trains, but for its options; above one process through Accelerate's launcher."""
    if processes == 1:
        return [sys.executable, "-m", "train"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE_CONFIG)]
    return [*launcher, "--num_processes", str(processes), "-m", "train"]


def environment() -> dict[str, str]:
    """The environment in which `train` is this project's and nobody's `train.py` in the current folder.

    Python puts the current folder first for `-m`. PYTHONSAFEPATH keeps it out, in the launcher's children too, and
    PYTHONPATH says where this project is, installed or not.
    """
    paths = [str(_CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}
