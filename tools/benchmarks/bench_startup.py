"""From the command to the first step, by part, as every run measures it: on few small images, and on an index as large
as ImageNet-LT's. Also how long a mistaken option takes to be told.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from shards.build import BuildOptions, build_shard_set
from shards.images import ImagePolicy
from shards.source import JSON, SampleRef
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench, photo
from tools.benchmarks.measuring import Target
from tools.launching import environment, train_command
from tools.sources.subsets import long_tailed_counts

_CLASSES, _SAMPLES, _TESTED = 1000, 115_846, 20  # ImageNet-LT's; few to test, as only the start is measured
_SIZE = (64, 48)  # of its images here: their bytes are not read before the first step, but for those of that step
_KINDS = ("wall", "cpu")
_MISTAKE = ["--optimizer.lr", "fast"]


def run(bench: Bench) -> Report:
    """Each round starts every run once, after one start of each that only brings the files into memory."""
    samples = min(_SAMPLES, bench.scale.many_samples // 100)
    settings = {"device": bench.device.type, "rounds": bench.scale.rounds, "samples_of_the_large_set": samples}
    report = Report("startup", {"made": "generated"}, settings, saved_to=bench.saved_to)
    commands = {"digits-lt/ce": _digits(bench), "imagenet-lt/bs-cmo": _large(bench, samples)}
    starts: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in commands}
    mistakes = []
    for number in range(1 + bench.scale.rounds):
        for name, options in commands.items():
            measured = _start(["--recipe", name, *options], bench.scratch / "run")
            starts[name] += [measured] if number else []
        mistakes += [_seconds_of_a_mistake()] if number else []
    for name, found in starts.items():
        report.notes[name] = _medians(found)
    report.targets.append(Target("seconds until a mistaken option is told", median(mistakes), 1.0, at_most=True))
    return report


def _digits(bench: Bench) -> list[str]:
    from tools import build_shards

    folder = bench.scratch / "digits"
    for split in ("train", "test"):
        build_shards.main(["digits-lt", "--split", split, "--out", str(folder / split)])
    return ["--data.train", str(folder / "train"), "--data.test", str(folder / "test")]


def _large(bench: Bench, samples: int) -> list[str]:
    """DALI, as for photographs, though these would fit into memory; a batch that a CPU trains on in a second."""
    folder = bench.scratch / "large"
    pictures = [photo(seed, _SIZE) for seed in range(8)]
    shape = long_tailed_counts(10**6, _CLASSES, 0.004)
    counts = np.maximum(1, (shape * ((samples - _CLASSES) / shape.sum())).astype(np.int64))
    counts[0] += max(0, samples - counts.sum())
    for split, labels in (("train", np.repeat(np.arange(_CLASSES), counts)), ("test", np.arange(_TESTED))):
        source = _Pictures(split, pictures, labels.tolist())
        build_shard_set(source, folder / split, BuildOptions(ImagePolicy("header")), bench.cores)
    sets = ["--data.train", str(folder / "train"), "--data.test", str(folder / "test")]
    return [*sets, "--data.executor", "dali", "--batch_size", "8"]


@dataclass
class _Pictures:
    """A source whose samples show a few pictures in turn."""

    split: str
    pictures: list[bytes]
    labels: list[int]

    def __post_init__(self) -> None:
        self.name = "pictures"
        self.class_names = [f"class {number}" for number in range(_CLASSES)]
        self.samples: Sequence[SampleRef] = [
            SampleRef(f"{number}.jpg", label, number) for number, label in enumerate(self.labels)
        ]
        self.options: dict[str, JSON] = {}
        self.inputs: dict[str, dict[str, JSON]] = {}
        self.left_out: dict[str, str] = {}

    def estimated_bytes(self) -> int:
        return len(self.labels) * max(map(len, self.pictures))

    def open(self) -> "_Pictures":
        return self

    def fetch(self, ref: SampleRef) -> bytes:
        assert isinstance(ref.location, int)
        return self.pictures[ref.location % len(self.pictures)]

    def will_fetch(self, ref: SampleRef) -> None: ...

    def close(self) -> None: ...


def _start(options: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """What a run of one step says of its start: part → {"wall", "cpu"}, seconds."""
    last = ["--max_steps", "1", "--trackers", "[]", "--run_dir", str(folder)]
    ended = subprocess.run([*train_command(1), *options, *last], env=environment(), capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"a run of one step ended with status {ended.returncode}: {ended.stderr[-2000:]}")
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))["startup_seconds"]
    finally:
        shutil.rmtree(folder)


def _medians(starts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Part → {"wall", "cpu"}, medians over the rounds, and those of the sums as "all"."""
    with_sums = [start | {"all": {kind: sum(p[kind] for p in start.values()) for kind in _KINDS}} for start in starts]
    return {
        part: {kind: round(median(start[part][kind] for start in with_sums), 3) for kind in _KINDS}
        for part in with_sums[0]
    }


def _seconds_of_a_mistake() -> float:
    started = time.perf_counter()
    ended = subprocess.run([*train_command(1), *_MISTAKE], env=environment(), capture_output=True)
    if ended.returncode != 2:
        raise RuntimeError(f"a mistaken option ended with status {ended.returncode}, expected 2")
    return time.perf_counter() - started
