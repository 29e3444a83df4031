"""DALI's fastest decoding settings on a GPU: one row per alternative to the choices in `decode_settings.py`.

The tests run it on the CPU, where the JPEG engine's settings have no effect.
"""

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.decode_settings import DecodeSettings, decode_settings
from pipeline.plan import Plan, Stream, StreamPlan
from pipeline.sampling import Shuffled
from pipeline.views.presets import CROP_224
from shards.reader import ShardSet
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Table, Variant, compare, rate_of_batches

DERIVED, REGIONS = "as derived from the machine", "regions"
_THREADS, _SHARES, _PREFETCH = (4, 8), (0.0, 0.65, 0.9), (2, 3)
_EPOCHS = 10**4
_PROBE_SECONDS = 60  # DALI and CUDA start in less than 30


def compare_settings(bench: Bench, regions: bool) -> tuple[Table, dict[str, float]]:
    """Images per second by setting, from decoding to the flipped crop, and the MiB of device memory used.

    regions: whether to try region decoding, see `region_decoding_failure`.
    """
    mebibytes: dict[str, float] = {}

    def once(name: str, settings: DecodeSettings) -> float:
        rate, taken = _measure(bench, settings)
        mebibytes[name] = round(max(taken / 2**20, mebibytes.get(name, 0.0)), 1)
        return rate

    derived = decode_settings(bench.device, bench.cores)
    settings = variants(derived, bench.shards, regions)
    measured: dict[str, Variant] = {name: partial(once, name, each) for name, each in settings.items()}
    table = compare("decode, crop, resize and flip, by settings of DALI", "images/s", measured, bench.scale.rounds)
    return table, mebibytes


def variants(derived: DecodeSettings, dataset: ShardSet, regions: bool) -> dict[str, DecodeSettings]:
    """The derived settings, and settings that differ from them in one respect."""
    # A size that nine of ten images fit into: the engine's buffers have this size times the batch size.
    width, height = (int(np.quantile(dataset.index[side], 0.9)) for side in ("width", "height"))
    changed = {
        "whole images": replace(derived, regions=False),
        **({REGIONS: replace(derived, regions=True)} if regions else {}),
        **{f"JPEG engine {share:g}": replace(derived, hardware_share=share) for share in _SHARES},
        **{f"{count} threads": replace(derived, threads=count) for count in _THREADS if count < derived.threads},
        **{f"{depth} batches ahead": replace(derived, prefetch_batches=depth) for depth in _PREFETCH},
        f"size hint {width} x {height}": replace(derived, size_hint=(width, height)),
    }
    return {DERIVED: derived} | {name: settings for name, settings in changed.items() if settings != derived}


def _measure(bench: Bench, settings: DecodeSettings) -> tuple[float, int]:
    """Images per second, and the bytes of device memory that the executor uses with a full queue."""
    from nvidia.dali import backend

    # DALI keeps the previous variant's memory.
    backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]
    free = _free_bytes(bench.device)
    sizes = _batch_sizes(bench.shards, bench.device, settings, bench.scale.batch_size)
    try:
        rate = rate_of_batches(sizes, settings.prefetch_batches + 2, bench.scale.batches, bench.device)
        return rate, free - _free_bytes(bench.device)
    finally:
        sizes.close()


def _free_bytes(device: torch.device) -> int:
    return 0 if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


def _batch_sizes(dataset: ShardSet, device: torch.device, settings: DecodeSettings, batch_size: int) -> Any:
    """An endless generator that owns an executor; closing it stops the executor."""
    from pipeline.executors.dali import DaliExecutor

    views = (CROP_224,)
    plan = Plan({"train": dataset}, (Stream("original", Shuffled(), views),), None, 0, batch_size, _EPOCHS, True)
    executor = DaliExecutor(dataset, views, device, settings, batch_size, BadSamples(dataset, budget=0))
    batches = executor.run(_requests(plan))
    try:
        for request, _ in batches:
            yield len(request)
    finally:
        executor.close()
        batches.close()


def _requests(plan: Plan) -> Iterator[StreamPlan]:
    for step in itertools.count():
        yield plan.stream_step("original", *divmod(step, plan.steps_per_epoch))


# ----------------------------------------------------------------- does region decoding work at all


def region_decoding_failure(bench: Bench) -> str | None:
    """Why regions cannot be decoded on this device, or None.

    nvImageCodec 0.9.0 is reported to crash the process on an H100 (https://github.com/NVIDIA/nvImageCodec/issues/55),
    so it is tried in a separate one.
    """
    settings = replace(decode_settings(bench.device, bench.cores), regions=True)
    return failure_in_child(decode_one_batch, bench.shards.path, bench.device, settings, bench.scale.batch_size)


def decode_one_batch(shards: Path, device: torch.device, settings: DecodeSettings, batch_size: int) -> None:
    """Raises RuntimeError, or worse, if these settings do not work."""
    sizes = _batch_sizes(ShardSet.open(shards), device, settings, batch_size)
    next(sizes)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    sizes.close()


def failure_in_child(action: Callable[..., None], *arguments: Any) -> str | None:
    """Call in a separate process; returns the failure, or None on success."""
    process = multiprocessing.get_context("spawn").Process(target=action, args=arguments)
    process.start()
    process.join(_PROBE_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return f"no result after {_PROBE_SECONDS} seconds"
    if process.exitcode < 0:
        return f"ended by {signal.Signals(-process.exitcode).name}"
    return None if process.exitcode == 0 else f"exit status {process.exitcode}"
