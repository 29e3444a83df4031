"""Describes a GPU machine, and checks whether DALI decodes there as on a CPU; the first minutes of a GPU day.

    python -m tools.benchmarks.gpu_probe --out OUT/probe.json

Every finding is written immediately.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.dali import DaliExecutor
from pipeline.executors.decode_settings import decode_settings
from pipeline.plan import Plan, Stream
from pipeline.sampling import Shuffled
from pipeline.views.presets import CROP_224
from shards.reader import ShardSet
from tools.benchmarks.decoding import region_decoding_failure
from tools.benchmarks.figures import machine
from tools.benchmarks.material import QUICK, TOY, Bench
from tools.benchmarks.measuring import now
from train.evaluation.run_report import versions
from train.run_folder import write_json

_COPIED_BYTES = 2**30


def copy_bandwidth(device: torch.device, copied_bytes: int = _COPIED_BYTES, repeats: int = 20) -> float:
    """Bytes read and written per second by a copy on the device, in GB/s."""
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    started = now(device)
    for _ in range(repeats):
        target.copy_(source)
    return 2 * copied_bytes * repeats / (now(device) - started) / 1e9


def decoded_batch(shards: ShardSet, device: torch.device, batch_size: int, threads: int) -> np.ndarray:
    """The first batch of a plan, uint8 (B, 224, 224, 3), with whole images decoded on a device by DALI's GPU graph."""
    plan = Plan({"train": shards}, (Stream("original", Shuffled(), (CROP_224,)),), None, 0, batch_size, 1)
    settings = replace(decode_settings(device, threads), regions=False)
    executor = DaliExecutor(shards, (CROP_224,), device, settings, batch_size, BadSamples(shards, 0))
    try:
        _, (views,) = next(executor.run(iter([plan.stream_step("original", 0, 0)])))
        return views.cpu().numpy()
    finally:
        executor.close()


def differences(bench: Bench) -> dict[str, float]:
    """Difference in grey levels between a batch decoded on the device and on the CPU."""
    size = min(bench.scale.batch_size, len(bench.shards))
    found, expected = (
        decoded_batch(bench.shards, device, size, bench.cores).astype(int)
        for device in (bench.device, torch.device("cpu"))
    )
    levels = np.abs(found - expected)
    return {"mean": float(levels.mean()), "p99.9": float(np.quantile(levels, 0.999)), "max": int(levels.max())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe one finding after another; a failure is also a finding."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.gpu_probe", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {}

    def note(name: str, find: Callable[[], Any]) -> None:
        try:
            found[name] = find()
        except Exception as error:  # any error: the next findings must not be lost
            found[name] = f"failed: {type(error).__name__}: {error}"
        write_json(options.out, found)
        print(f"{name}: {found[name]}", flush=True)

    note("machine", machine)
    note("versions", versions)
    note("nvidia_smi", _nvidia_smi)
    copied = 2**20 if options.toy else _COPIED_BYTES
    note("copy_gigabytes_per_second", lambda: round(copy_bandwidth(device, copied), 1))
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), options.images, TOY if options.toy else QUICK, device, 1 if options.toy else 16)
        note("grey_levels_between_device_and_cpu", lambda: differences(bench))
        note("region_decoding_failure", lambda: region_decoding_failure(bench))
    return 0


def _nvidia_smi() -> str:
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
