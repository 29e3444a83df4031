"""Images a second of whole loaders: ours against what one would otherwise use, on the same files, cores and recipe.

On a GPU also of its parts: DALI's settings, and the augmentation of a batch with and without compilation.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from pipeline.augmentation.augment import augment
from pipeline.loader import Loader
from pipeline.plan import Plan, Stream
from pipeline.sampling import Shuffled
from pipeline.views.operations import Operation
from pipeline.views.presets import CROP_224, JITTERED_224, SIM_32
from pipeline.views.view import RandomResizedCrop, View
from tools.benchmarks import baselines, decoding
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Table, Target, Variant, compare, rate_of, rate_of_batches

OURS = "this project (DALI and augment)"
OFFICIAL = "DataLoader, PIL, transforms v1 (official)"
TENSORS = "DataLoader, decode_jpeg, transforms v2"
WEBDATASET = "webdataset WebLoader, PIL"
DALI_READER = "DALI readers.webdataset"
FFCV = "FFCV"
SPDL = "SPDL, FFmpeg"
EAGER, COMPILED = "eager", "compiled"
_EPOCHS = 10**4
_SIDES = (112, 224, 448)
_PLANNED_BATCHES = 4  # augmented in turn: parts of a batch that share an operation differ in size, as in a run


def run(bench: Bench) -> Report:
    """Both recipes: with colour jitter (ImageNet-LT) and without (iNaturalist); on a GPU also parts."""
    report = Report("loader", bench.describe(), {"workers": bench.cores, **bench.settings()})
    has_ffcv = importlib.util.find_spec("ffcv") is not None
    report.notes["ffcv"] = "measured on the same images, encoded again" if has_ffcv else "not measured: not installed"
    has_spdl = importlib.util.find_spec("spdl") is not None and importlib.util.find_spec("spdl.io") is not None
    report.notes["spdl"] = "measured" if has_spdl else "not measured: install longtail[bench]"
    on_gpu = bench.device.type == "cuda"
    failure = decoding.region_decoding_failure(bench) if on_gpu else None
    regions = failure is None
    for name, view, jitter in (("imagenet (colour jitter)", JITTERED_224, True), ("inat", CROP_224, False)):
        report.tables.append(_compare(bench, name, view, jitter, has_ffcv, has_spdl, regions))
    report.tables.append(_by_side(bench))
    if on_gpu:
        by_settings, report.notes["device_memory_mebibytes"] = decoding.compare_settings(bench, regions)
        report.tables += [*compare_augmenting(bench), by_settings]
        report.notes["region_decoding"] = "works" if regions else f"not measured, here or in DALI's reader: {failure}"
    jittered = report.tables[0]
    report.targets = [
        Target("loader / official PIL loader, ImageNet-LT recipe", jittered.ratio(OURS, OFFICIAL), 1.6),
        Target("loader / torchvision v2 on tensors, ImageNet-LT recipe", jittered.ratio(OURS, TENSORS), 1.0),
    ]
    return report


def _by_side(bench: Bench) -> Table:
    """How the cost of an image grows with the size of the crop: decoding does not depend on it, the rest does."""
    variants: dict[str, Variant] = {}
    for side in _SIDES:
        view = replace(JITTERED_224, geometry=RandomResizedCrop(side))
        variants[f"{side} x {side}"] = partial(_our_rate, bench, view)
    return compare("this project, colour jitter, by size of the crop", "images/s", variants, bench.scale.rounds)


def compare_augmenting(bench: Bench) -> list[Table]:
    """Augmenting a batch that is on the device: every step of an operation by itself, and compiled."""

    def by_compilation(name: str, operations: tuple[Operation, ...]) -> Table:
        rate = partial(augmenting_rate, bench, operations)
        variants: dict[str, Variant] = {EAGER: partial(rate, eager=True), COMPILED: partial(rate, eager=False)}
        return compare(f"augmenting a batch, {name}", "images/s", variants, bench.scale.rounds)

    return [
        by_compilation("colour jitter", JITTERED_224.operations),
        by_compilation("jitter with hue, grey, blur", SIM_32.operations),
    ]


def augmenting_rate(bench: Bench, operations: tuple[Operation, ...], eager: bool) -> float:
    """Images a second that take the operations, at 224 x 224 pixels; each planned batch is first run uncounted."""
    size, rng = bench.scale.batch_size, np.random.default_rng(0)
    images = torch.randint(0, 256, (size, 224, 224, 3), dtype=torch.uint8, device=bench.device)
    planned = [
        tuple(
            step
            for operation in operations
            for step in operation.plan(size, (224, 224), lambda _, shape: rng.random(shape))
        )
        for _ in range(_PLANNED_BATCHES)
    ]
    upcoming = cycle(planned)
    repeats = 200 if bench.device.type == "cuda" else bench.scale.batches
    with torch.compiler.set_stance("force_eager") if eager else nullcontext():
        return rate_of(lambda: augment(images, next(upcoming)), repeats, size, bench.device, warm_up=len(planned))


def _compare(bench: Bench, name: str, view: View, jitter: bool, has_ffcv: bool, has_spdl: bool, regions: bool) -> Table:
    files, shards, cores, batch_size = bench.folder, bench.shards, bench.cores, bench.scale.batch_size

    rate = partial(_rate, bench)
    variants: dict[str, Variant] = {
        OFFICIAL: lambda: rate(_sizes(baselines.pil(files, batch_size, cores, jitter))),
        TENSORS: lambda: rate(_sizes(baselines.tensors(files, batch_size, cores, jitter))),
        WEBDATASET: lambda: rate(_sizes(baselines.webdataset(shards, batch_size, cores, jitter))),
        DALI_READER: lambda: rate(
            _sizes(baselines.dali_webdataset(shards, batch_size, cores, jitter, bench.device, regions))
        ),
        OURS: lambda: _our_rate(bench, view),
    }
    if has_ffcv:
        compiled = baselines.ffcv_loader(_ffcv_file(bench), batch_size, cores, jitter)
        variants[FFCV] = lambda: rate(_sizes(baselines.ffcv(compiled)))
    if has_spdl:
        variants[SPDL] = lambda: rate(_sizes(baselines.spdl(files, batch_size, cores, jitter)))
    return compare(f"one stream, recipe {name}", "images/s", variants, bench.scale.rounds)


def _ffcv_file(bench: Bench) -> Path:
    """The images as FFCV reads them, written when first asked for."""
    file = bench.scratch / "images.beton"
    if not file.exists():
        baselines.write_ffcv(bench.folder, file, bench.cores)
    return file


def _rate(bench: Bench, batches: Iterator[int]) -> float:
    # More batches than a loader has in its queues: a DataLoader holds two a worker.
    return rate_of_batches(batches, 2 * bench.cores + 2, bench.scale.batches, bench.device)


def _our_rate(bench: Bench, view: View) -> float:
    return _rate(bench, _our_sizes(bench, view))


def _sizes(batches: baselines.Batches) -> Iterator[int]:
    for images, _ in batches:
        yield len(images)


def _our_sizes(bench: Bench, view: View) -> Iterator[int]:
    stream = Stream("original", Shuffled(), (view,))
    plan = Plan({"train": bench.shards}, (stream,), None, 0, bench.scale.batch_size, _EPOCHS, drop_last=True)
    with Loader(plan, bench.device, decode_threads=bench.cores, executor="dali") as loader:
        for loaded in loader:
            yield len(loaded.micro_batches[0].batches["original"].labels)
