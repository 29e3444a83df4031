"""The cost of planning and feeding: as a share of loading, by number of ranks, and by size of the set."""

import itertools
import mmap
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.dali_graphs import decode_inputs
from pipeline.executors.readahead import ReadAhead
from pipeline.labels_ahead import LabelsAhead
from pipeline.loader import Loader
from pipeline.mix_rule import MixRule
from pipeline.plan import Plan, Position, Stream
from pipeline.rng import RowDraws
from pipeline.sampling import ClassWeighted, Sampler, Shuffled
from pipeline.views.presets import JITTERED_224
from shards.format import BY_CLASS_FILE, INDEX_DTYPE, INDEX_FILE, SOURCES_FILE, ShardInfo, shard_file
from shards.reader import ShardSet
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Table, Target, Variant, compare
from tools.benchmarks.synthetic_set import finish_set
from tools.sources.subsets import long_tailed_counts

WHOLE = "whole loader, colour jitter"
_CPU = torch.device("cpu")
_EPOCHS = 10**4
_STREAMS = (Stream("original", Shuffled(), (JITTERED_224,)), Stream("foreground", ClassWeighted(), (JITTERED_224,)))
_RANKS, _OWN_IMAGES, _PLANNED_STEPS = (1, 8, 64, 1024), 256, 50
_STEP_SECONDS, _WAITED_STEPS = 0.2, 7
_BATCH, _DRAWS = 128, 128 * 200  # of the comparison of sizes; draws of a round
_PUBLISHED_SIZES = ((115_846, 1000), (437_513, 8142))  # samples and classes of ImageNet-LT and iNaturalist 2018


def run(bench: Bench) -> Report:
    """The share is one of CPU time: planning and feeding run in threads beside the decoding that they feed."""
    report = Report("feed", bench.describe(), bench.settings(), saved_to=bench.saved_to)
    shares = _shares(bench)
    report.add(shares)
    report.targets.append(
        Target("plan and feed / whole loader, CPU time", 1 / shares.ratio("plan and feed", WHOLE), 0.05, at_most=True)
    )
    planning, notes = _planning(bench)
    report.add(planning)
    report.notes |= notes
    draws, notes = _draws(bench)
    report.add(draws)
    largest = draws.rows[-2]
    report.notes |= notes
    alone, many = planning.rows[0], planning.rows[-1]
    report.targets += [
        Target(f"microseconds a draw, {largest.name}", 1e6 / largest.rate, 1.0, at_most=True),
        Target(f"milliseconds a step, {many.name} − 1 rank", 1000 / many.rate - 1000 / alone.rate, 1.0, at_most=True),
        Target(f"seconds to open, {largest.name}", notes["seconds_to_open"][largest.name], 2.0, at_most=True),
    ]
    return report


# ----------------------------------------------------------------- the share of the loader


def _shares(bench: Bench) -> Table:
    scale, dataset = bench.scale, bench.shards
    plan = Plan({"train": dataset}, _STREAMS[:1], None, 0, scale.batch_size, _EPOCHS, drop_last=True)
    both = Plan({"train": dataset}, _STREAMS, None, 0, scale.batch_size, _EPOCHS, drop_last=True)
    steps = [divmod(step, plan.steps_per_epoch) for step in range(scale.batches)]

    def planning(name: str) -> float:
        return _images_per_cpu_second(lambda: [both.stream_step(name, *step) for step in steps], bench)

    def feeding() -> float:
        def action() -> None:
            requests = (plan.stream_step("original", *step) for step in steps)
            ahead = ReadAhead(requests, dataset, BadSamples(dataset, budget=0))
            for request in ahead:
                decode_inputs(dataset, request, regions=True)
            ahead.close()

        return _images_per_cpu_second(action, bench)

    def loading() -> float:
        def action() -> None:
            stop = Position(*divmod(scale.batches, plan.steps_per_epoch))
            with Loader(plan, _CPU, stop=stop, decode_threads=bench.cores, executor="dali") as loader:
                for _ in loader:
                    pass

        return _images_per_cpu_second(action, bench)

    variants: dict[str, Variant] = {
        WHOLE: loading,
        "plan and feed": feeding,
        "plan alone, original stream": lambda: planning("original"),
        "plan alone, foreground stream": lambda: planning("foreground"),
    }
    return compare("images per second of CPU time", "images/cpu-s", variants, scale.rounds)


def _images_per_cpu_second(action: Callable[[], object], bench: Bench) -> float:
    action()  # pages, imports
    started = time.process_time()
    action()
    return bench.scale.batches * bench.scale.batch_size / (time.process_time() - started)


def _planning(bench: Bench) -> tuple[Table, dict[str, Any]]:
    """Steps of CMO, both streams and boxes, as planned by one of many ranks with the largest index.

    Simulated: one process acts as the first rank. The images have no size, which does not change the cost of a crop.
    """
    folder = _largest_set(bench)
    ranks = [number for number in _RANKS if number * _OWN_IMAGES <= bench.scale.many_samples]
    variants: dict[str, Variant] = {f"{number:,} ranks": partial(_planned_steps, folder, number) for number in ranks}
    title = f"steps planned by one rank, {_OWN_IMAGES} images of its own in each stream"
    table = compare(title, "steps/cpu-s", variants, bench.scale.rounds)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        notes = child.submit(_start_and_plan, folder, ranks[-1]).result()
    plans = {f"{number:,} ranks": _plan_of_ranks(folder, number) for number in ranks}
    notes["milliseconds_for_all_labels"] = {name: round(1000 * _label_seconds(plan), 2) for name, plan in plans.items()}
    waits = {name: round(1000 * _label_wait_seconds(plan), 2) for name, plan in plans.items()}
    notes[f"milliseconds_that_steps_of_{1000 * _STEP_SECONDS:.0f}_wait_for_all_labels"] = waits
    return table, notes


def _plan_of_ranks(folder: Path, ranks: int) -> Plan:
    rule = MixRule(probability=1.0, plain_first=0, plain_last=0)
    return Plan({"train": ShardSet.open(folder)}, _STREAMS, rule, 0, ranks * _OWN_IMAGES, _EPOCHS)


def _plan_own_rows(plan: Plan, step: int, ranks: int) -> None:
    at = divmod(step, plan.steps_per_epoch)
    for name in plan.streams:
        plan.stream_step(name, *at, (0, ranks))
    plan.mix(*at, _OWN_IMAGES)


def _planned_steps(folder: Path, ranks: int) -> float:
    plan = _plan_of_ranks(folder, ranks)
    _plan_own_rows(plan, 0, ranks)
    started = time.process_time()
    for step in range(1, _PLANNED_STEPS + 1):
        _plan_own_rows(plan, step, ranks)
    return _PLANNED_STEPS / (time.process_time() - started)


def _label_seconds(plan: Plan) -> float:
    """For the labels of a whole step, both streams, which a loss with class weights needs in addition."""
    plan.global_batch(0, 0).labels("foreground")
    started = time.process_time()
    for step in range(1, 4):
        whole = plan.global_batch(*divmod(step, plan.steps_per_epoch))
        for name in plan.streams:
            whole.labels(name)
    return (time.process_time() - started) / 3


def _label_wait_seconds(plan: Plan) -> float:
    """How long the training thread stands still for them, a step, once they are drawn ahead; its work is a pause."""
    ahead, waits = LabelsAhead(plan, Position(1, 0)), []
    for step in range(_WAITED_STEPS):
        whole = ahead.global_batch(Position(0, step))
        started = time.perf_counter()
        for name in plan.streams:
            whole.labels(name)
        waits.append(time.perf_counter() - started)
        time.sleep(_STEP_SECONDS)
    ahead.close()
    return median(waits[1:])


def _start_and_plan(folder: Path, ranks: int) -> dict[str, Any]:
    """In a separate process: the time until a rank's first step is planned, and the private memory it then uses."""
    before, started = _own_megabytes(), time.perf_counter()
    plan = _plan_of_ranks(folder, ranks)
    _plan_own_rows(plan, 0, ranks)
    seconds = time.perf_counter() - started
    for step in range(1, _PLANNED_STEPS):
        _plan_own_rows(plan, step, ranks)
    checked_bits = len(plan.datasets["train"]) / 8e6  # of BadSamples, after an epoch or two have used all of them
    return {
        "seconds_to_the_first_step": round(seconds, 3),
        "megabytes_of_a_rank_beside_the_maps": round(_own_megabytes() - before + checked_bits, 1),
    }


def _own_megabytes() -> float:
    """Resident memory of this process that is not file-backed."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


# ----------------------------------------------------------------- draws


def _draws(bench: Bench) -> tuple[Table, dict[str, Any]]:
    """Draws per second by size of the set. Also the time to open the set, and to draw from it while no page is mapped
    yet, as in the first steps of a run (the files are in memory; a disk would add reading time).
    """
    variants: dict[str, Variant] = {}
    opening: dict[str, float] = {}
    first: dict[str, float] = {}
    for samples, classes in (*_PUBLISHED_SIZES, (bench.scale.many_samples, bench.scale.many_classes)):
        name = f"{samples:,} samples, {classes:,} classes"
        largest = (samples, classes) == (bench.scale.many_samples, bench.scale.many_classes)
        folder = (
            _largest_set(bench) if largest else write_empty_set(bench.scratch / f"index-{samples}", samples, classes)
        )
        started = time.perf_counter()
        dataset = ShardSet.open(folder)
        sampler = ClassWeighted().over(dataset)
        _draw(sampler, 0)
        opening[name] = round(time.perf_counter() - started, 3)
        draw = partial(_draw, sampler)
        first[name] = round(1e6 / _draw_rate(partial(_look_up, dataset, draw))(), 3)
        # An epoch eventually touches every page of both files; here this is done beforehand.
        for array in (dataset.sample_ids_by_class, dataset.index):
            array.view(np.uint8)[:: mmap.PAGESIZE].max()
        variants[name] = _draw_rate(draw)
        variants[f"{name}, with the records"] = _draw_rate(partial(_look_up, dataset, draw))
    table = compare("class-weighted draws from mapped files", "draws/s", variants, bench.scale.rounds)
    return table, {"seconds_to_open": opening, "microseconds_a_draw_with_record_before_pages_are_mapped": first}


def _draw(sampler: Sampler, step: int) -> np.ndarray:
    return sampler.ids(RowDraws(0, 0, step, np.arange(_BATCH)), "draw", 0)


def _look_up(dataset: ShardSet, draw: Callable[[int], np.ndarray], step: int) -> np.ndarray:
    return dataset.index[draw(step)]


def _draw_rate(draw: Callable[[int], np.ndarray]) -> Variant:
    """Draws per second, with different batches in each round."""
    steps = itertools.count(1)

    def once() -> float:
        started = time.perf_counter()
        for step in itertools.islice(steps, _DRAWS // _BATCH):
            draw(step)
        return _DRAWS / (time.perf_counter() - started)

    return once


def _largest_set(bench: Bench) -> Path:
    folder = bench.scratch / "index-of-the-largest-set"
    return folder if folder.exists() else write_empty_set(folder, bench.scale.many_samples, bench.scale.many_classes)


def write_empty_set(folder: Path, samples: int, classes: int, side: int = 0) -> Path:
    """A shard set with an index of this size and no images: enough to plan with.

    side: side of all its images, in pixels. With 0, which is enough to draw samples, the index is a sparse file.
    """
    folder.mkdir()
    shape = long_tailed_counts(10**6, classes, 0.001)
    counts = np.maximum(1, (shape * (samples / shape.sum())).astype(np.int64))
    counts[0] += samples - counts.sum()
    index = np.lib.format.open_memmap(folder / INDEX_FILE, "w+", INDEX_DTYPE, (samples,))
    if side:
        index["width"] = index["height"] = side
    index.flush()
    by_class = np.lib.format.open_memmap(folder / BY_CLASS_FILE, "w+", np.dtype("<u4"), (classes + 1 + samples,))
    by_class[: classes + 1] = np.concatenate([[0], np.cumsum(counts)])
    # Spread out, as after a build's shuffle: neighbours within a class are on different pages of the index.
    by_class[classes + 1 :] = np.arange(samples, dtype=np.uint64) * np.uint64(2_654_435_761) % np.uint64(samples)
    by_class.flush()
    (folder / SOURCES_FILE).write_text("none\n", encoding="utf-8")
    (folder / shard_file(0)).write_bytes(bytes(1024))
    (folder / shard_file(0)).with_suffix(".idx").write_text("v1.2 0\n", encoding="utf-8")
    return finish_set(folder, "empty", counts.tolist(), [ShardInfo(shard_file(0), 1024, "", samples)])
