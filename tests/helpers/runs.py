"""Small runs for the tests of training: data, options, and processes that really start."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.helpers.shard_sets import small_images
from train.options import Options, parse

ROOT = Path(__file__).parents[2]
COUNTS = (14, 7, 4, 2)
TIMES = ("seconds", "images_per_second", "data_wait_share")  # what may differ between two equal runs


def make_data(folder: Path) -> Path:
    """A long-tailed training set of 27 images and a test set of 12, four classes, 32 pixels."""
    small_images(folder / "train", COUNTS)
    small_images(folder / "test", (3, 3, 3, 3))
    return folder


def arguments(data: Path, run_dir: Path, **changes: Any) -> list[str]:
    """Command line of a small CMO run of 3 epochs x 4 steps that pastes from the first epoch on."""
    values = {
        "data.train": data / "train",
        "data.test": data / "test",
        "data.preset": "cifar",
        "model.width": 4,
        "method.name": "cmo",
        "optimizer.lr": 0.05,
        "epochs": 3,
        "batch_size": 8,
        "log_every_steps": 1,
        "run_dir": run_dir,
        "trackers": "[]",
        "device": "cpu",
    }
    if changes.get("method.name", "cmo") == "cmo":
        values |= {"method.plain_first": 0, "method.plain_last": 0}
    values |= changes
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def options(data: Path, run_dir: Path, **changes: Any) -> Options:
    """The same, parsed."""
    return parse(arguments(data, run_dir, **changes))


def records(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def last_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The model of the newest checkpoint."""
    newest = max((run_dir / "checkpoints").glob("epoch*.pt"))
    return torch.load(newest, weights_only=True)["model"]


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
