"""Images per second of whole loaders: ours and the usual alternatives, on the same files, cores and recipe.

On a GPU also parts of ours: DALI's settings, and the augmentation of a batch with and without compilation.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from pipeline.augmentation.augment import augment
from pipeline.loader import Loader, evaluation_batches
from pipeline.plan import Plan, Stream
from pipeline.sampling import Shuffled
from pipeline.views.operations import Operation
from pipeline.views.presets import CENTER_224, CROP_224, JITTERED_224, SIM_32
from pipeline.views.view import RandomResizedCrop, View
from tools.benchmarks import baselines, decoding
from tools.benchmarks.baselines import Recipe
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import (
    Table,
    Target,
    Variant,
    compare,
    compare_with_cpu,
    rate_of,
    rates_of_batches,
)

OURS = "this project (DALI and augment)"
OFFICIAL = "DataLoader, PIL, transforms v1 (official)"
TENSORS = "DataLoader, decode_jpeg, transforms v2"
WEBDATASET = "webdataset WebLoader, PIL"
DALI_READER = "DALI readers.webdataset"
SPDL = "SPDL, FFmpeg"
_FFCV_FILES = {"FFCV, its file of JPEGs": "jpg", "FFCV, its file of pixels": "raw"}
_RECIPES = {
    "one stream, recipe imagenet (colour jitter)": Recipe.JITTERED,
    "one stream, recipe inat": Recipe.CROPPED,
    "evaluation": Recipe.EVALUATED,
}
_VIEWS = {Recipe.JITTERED: JITTERED_224, Recipe.CROPPED: CROP_224}
EAGER, COMPILED = "eager", "compiled"
_EPOCHS = 10**4
_SIDES = (112, 224, 448)
_PLANNED_BATCHES = 4  # augmented in turn: the parts of a batch that share an operation vary in size, as in a run


def run(bench: Bench) -> Report:
    """Training with colour jitter (ImageNet-LT) and without (iNaturalist), and evaluation; on a GPU also parts."""
    report = Report("loader", bench.describe(), {"workers": bench.cores, **bench.settings()}, saved_to=bench.saved_to)
    report.notes |= {name: "absent" if reason else "measured" for name, reason in _absent().items()}
    report.notes |= {f"{name}_absent_because": reason for name, reason in _absent().items() if reason}
    on_gpu = bench.device.type == "cuda"
    failure = decoding.region_decoding_failure(bench) if on_gpu else None
    regions = failure is None
    if on_gpu:  # first: a piece of a GPU day may end before the loaders of others are through
        report.notes["region_decoding"] = "works" if regions else f"not measured, here or in DALI's reader: {failure}"
        by_settings, report.notes["device_memory_mebibytes"] = decoding.compare_settings(bench, regions)
        report.add(by_settings, *compare_augmenting(bench))
    compared = []
    for title, recipe in _RECIPES.items():
        by_clock, by_cpu = _compare(bench, title, recipe, regions)
        report.add(by_clock, by_cpu)
        compared.append(by_clock)
    report.add(_by_side(bench))
    jittered = compared[0]
    report.targets = [
        Target("loader / official PIL loader, ImageNet-LT recipe", jittered.ratio(OURS, OFFICIAL), 1.6),
        Target("loader / torchvision v2 on tensors, ImageNet-LT recipe", jittered.ratio(OURS, TENSORS), 1.0),
        *(Target(f"loader / the fastest other on unchanged files, {t.title}", _lead(t), 1.0) for t in compared),
    ]
    return report


def _absent() -> dict[str, str]:
    """For baselines with extra requirements: why each is not measured, or nothing."""
    reasons = {}
    for name, modules, how in (
        ("ffcv", ("ffcv",), "pip install ffcv, with Debian's libopencv-dev and libturbojpeg0-dev"),
        ("spdl", ("spdl", "spdl.io"), "pip install longtail[bench], with Debian's ffmpeg"),
    ):
        try:
            for module in modules:
                importlib.import_module(module)
            reasons[name] = ""
        except (ImportError, OSError, RuntimeError) as error:  # a system library may be missing
            reasons[name] = f"{type(error).__name__}: {error}; {how}"
    return reasons


def _lead(table: Table) -> float:
    """Our ratio to the fastest of the others that read the files as they are: FFCV's are written anew."""
    others = [row.name for row in table.rows if row.name not in (OURS, *_FFCV_FILES) and not row.failed]
    return min((table.ratio(OURS, name) for name in others), default=math.nan)


def _by_side(bench: Bench) -> Table:
    """How the cost of an image grows with the crop size: decoding does not depend on it, the rest does."""
    variants: dict[str, Variant] = {}
    for side in _SIDES:
        view = replace(JITTERED_224, geometry=RandomResizedCrop(side))
        variants[f"{side} x {side}"] = partial(_our_rate, bench, view)
    return compare("this project, colour jitter, by size of the crop", "images/s", variants, bench.scale.rounds)


def compare_augmenting(bench: Bench) -> list[Table]:
    """Augmenting a batch on the device: eager, and compiled."""

    def by_compilation(name: str, operations: tuple[Operation, ...]) -> Table:
        rate = partial(augmenting_rate, bench, operations)
        variants: dict[str, Variant] = {EAGER: partial(rate, eager=True), COMPILED: partial(rate, eager=False)}
        return compare(f"augmenting a batch, {name}", "images/s", variants, bench.scale.rounds)

    return [
        by_compilation("colour jitter", JITTERED_224.operations),
        by_compilation("jitter with hue, grey, blur", SIM_32.operations),
    ]


def augmenting_rate(bench: Bench, operations: tuple[Operation, ...], eager: bool) -> float:
    """Images per second through the operations, at 224 x 224 pixels; each planned batch first runs uncounted."""
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


def _compare(bench: Bench, title: str, recipe: Recipe, regions: bool) -> tuple[Table, Table]:
    files, shards, cores, batch_size = bench.folder, bench.shards, bench.cores, bench.scale.batch_size
    absent = _absent()

    def rates(batches: Callable[[], baselines.Batches]) -> Callable[[], tuple[float, float]]:
        return lambda: _rates(bench, _sizes(batches()))

    variants = {
        OFFICIAL: rates(lambda: baselines.pil(files, batch_size, cores, recipe)),
        TENSORS: rates(lambda: baselines.tensors(files, batch_size, cores, recipe)),
        WEBDATASET: rates(lambda: baselines.webdataset(shards, batch_size, cores, recipe)),
        DALI_READER: rates(lambda: baselines.dali_webdataset(shards, batch_size, cores, recipe, bench.device, regions)),
        OURS: lambda: _rates(
            bench, _our_evaluated(bench) if recipe is Recipe.EVALUATED else _our_sizes(bench, _VIEWS[recipe])
        ),
    }
    if not absent["ffcv"]:
        for name, mode in _FFCV_FILES.items():
            compiled = baselines.ffcv_loader(_ffcv_file(bench, mode), batch_size, cores, recipe)
            variants[name] = rates(partial(baselines.ffcv, compiled))
    if not absent["spdl"]:
        variants[SPDL] = rates(lambda: baselines.spdl(files, batch_size, cores, recipe))
    return compare_with_cpu(title, variants, bench.scale.rounds)


def _ffcv_file(bench: Bench, mode: str) -> Path:
    """The images in FFCV's format, written on first use."""
    file = bench.scratch / f"images-{mode}.beton"
    if not file.exists():
        baselines.write_ffcv(bench.folder, file, bench.cores, mode)
    return file


def _rates(bench: Bench, batches: Iterator[int]) -> tuple[float, float]:
    # More batches than a loader has in its queues: a DataLoader holds two per worker.
    return rates_of_batches(batches, 2 * bench.cores + 2, bench.scale.batches, bench.device)


def _our_rate(bench: Bench, view: View) -> float:
    return _rates(bench, _our_sizes(bench, view))[0]


def _sizes(batches: baselines.Batches) -> Iterator[int]:
    for images, _ in batches:
        yield len(images)


def _our_evaluated(bench: Bench) -> Iterator[int]:
    ids = np.tile(np.arange(len(bench.shards)), 100)  # more than is measured; an evaluation has each sample only once
    batches = evaluation_batches(
        bench.shards,
        CENTER_224,
        bench.scale.batch_size,
        bench.device,
        executor="dali",
        decode_threads=bench.cores,
        sample_ids=ids,
    )
    for batch in batches:
        yield len(batch.labels)


def _our_sizes(bench: Bench, view: View) -> Iterator[int]:
    stream = Stream("original", Shuffled(), (view,))
    plan = Plan({"train": bench.shards}, (stream,), None, 0, bench.scale.batch_size, _EPOCHS, drop_last=True)
    with Loader(plan, bench.device, decode_threads=bench.cores, executor="dali") as loader:
        for loaded in loader:
            yield len(loaded.micro_batches[0].batches["original"].labels)
