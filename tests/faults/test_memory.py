"""Loading takes no more memory after thousands of steps than after the first few."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.loader import Loader
from pipeline.mix_rule import MixRule
from pipeline.plan import Plan, Stream
from pipeline.sampling import ClassWeighted, Shuffled
from pipeline.views.view import RandomResizedCrop, View
from tests.helpers.shard_sets import encode, write_shard_set

BATCH = 4
_WARM_UP_STEPS = 100


def anonymous_mb() -> float:
    """Memory of this process that the kernel cannot drop: without the pages of mapped files, which it can."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize(
    ("steps", "megabytes"),
    [(400, 30), pytest.param(2000, 500, marks=pytest.mark.slow)],
    ids=["400 steps", "2000 steps"],
)
def test_memory_stays_flat(tmp_path: Path, steps: int, megabytes: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 150, 120, 3), np.uint8)
    encoded = [encode(Image.fromarray(pixels)) for pixels in noise]
    numbers = range(megabytes * 1_000_000 // len(encoded[0]))
    dataset = write_shard_set(tmp_path / "set", [encoded[i % 20] for i in numbers], [i % 5 for i in numbers])
    view = View(RandomResizedCrop(96), 0.5)
    streams = (Stream("original", Shuffled(), (view,)), Stream("foreground", ClassWeighted(), (view,), "mixing"))
    rule = MixRule(plain_first=0, plain_last=0)
    epochs = 1 + steps * BATCH // len(dataset)
    plan = Plan({"train": dataset}, streams, rule, seed=0, global_batch_size=BATCH, epochs=epochs)
    with Loader(plan, torch.device("cpu"), executor="dali", decode_threads=1) as loader:
        warm = after(loader, _WARM_UP_STEPS)
        assert after(loader, steps - _WARM_UP_STEPS) < 1.02 * warm


def after(loader: Loader, steps: int) -> float:
    """Memory after so many more steps."""
    for _ in range(steps):
        next(iter(loader))
    gc.collect()
    return anonymous_mb()
