"""Trained images per second, end to end: from shards, on resident random data, in the official structure."""

import math
from copy import deepcopy
from itertools import cycle

import numpy as np
import torch

from pipeline.mix_rule import MixRule
from tools.benchmarks import baselines
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Target, Variant, compare, rate_of_batches
from tools.benchmarks.rig import BareLoop, make_run, step_seconds, synthetic_steps, train_rate
from train.run import Run

SYNTHETIC = "resident random images"
SHARDS = "from shards"
_IMAGENET_LT_IMAGES = 100 * 115_846  # of 100 epochs
OFFICIAL = "official structure: two PIL loaders, fp32, NCHW"


def run(bench: Bench) -> Report:
    """CMO with the ImageNet-LT recipe. On a CPU network and decoding share cores, so only OFFICIAL is comparable."""
    on_gpu = bench.device.type == "cuda"
    large, small = ("resnet50", bench.fitting(256)), ("test_resnet", min(32, bench.scale.batch_size))
    model, batch_size = large if on_gpu else small
    counted = (500 if bench.scale.batches >= 50 else 2 * bench.scale.batches) if on_gpu else bench.scale.batches
    settings = {**bench.settings(), "model": model, "batch_size": batch_size, "batches": counted}
    report = Report("train", bench.describe(), settings, saved_to=bench.saved_to)
    precision = "bf16" if on_gpu else "no"
    ours = make_run(bench, model, "imagenet", batch_size, mixed_precision=precision)
    variants, times = _ours(ours, 2 * bench.cores + 2, counted)
    variants[OFFICIAL] = lambda: _official(bench, ours, batch_size, 2 * bench.cores + 2, counted)
    table = compare("trained images", "images/s", variants, bench.scale.rounds)
    tail = float(np.quantile(times[-1], 0.99) / np.median(times[-1])) if times else math.nan
    report.notes["step_time_p99_over_median"] = round(tail, 3)
    if on_gpu:
        report.targets = [
            Target("from shards / resident", table.ratio(SHARDS, SYNTHETIC), 0.95),
            Target("step time, p99 / median", tail, 1.2, at_most=True),
            Target("from shards / official structure", table.ratio(SHARDS, OFFICIAL), 3.0),
        ]
    report.add(table)
    if on_gpu:
        _add_compiled(bench, report, model, batch_size, counted)
    return report


def _ours(run: Run, warm_up: int, counted: int) -> tuple[dict[str, Variant], list[np.ndarray]]:
    """Training on resident images and from shards; the second fills a list of the times of its steps, in seconds."""
    resident = synthetic_steps(run, 20 if run.accelerator.device.type == "cuda" else 4)
    times: list[np.ndarray] = []

    def from_shards() -> float:
        with run.make_loader() as loader:
            rate, of_steps = step_seconds(run, loader, warm_up, counted)
        times.append(of_steps)
        return rate

    return {SYNTHETIC: lambda: train_rate(run, cycle(resident), warm_up, counted), SHARDS: from_shards}, times


def _add_compiled(bench: Bench, report: Report, model: str, batch_size: int, counted: int) -> None:
    """The fastest that a run can be told to be, which is harder to feed; and what ImageNet-LT would take so."""
    run = make_run(bench, model, "imagenet", batch_size, mixed_precision="bf16", compile="true")
    variants, _ = _ours(run, 2 * bench.cores + 2, counted)
    table = compare("trained images, the network compiled", "images/s", variants, bench.scale.rounds)
    rate = table[SHARDS].rate
    report.targets += [
        Target("from shards / resident, compiled", table.ratio(SHARDS, SYNTHETIC), 0.95),
        Target("images per second from shards, compiled", rate, 5000),
        Target(
            "hours of 100 epochs of ImageNet-LT at this rate", _IMAGENET_LT_IMAGES / rate / 3600, 0.65, at_most=True
        ),
    ]
    report.add(table)


def _official(bench: Bench, ours: Run, batch_size: int, warm_up: int, counted: int) -> float:
    """Reads both loaders on every step, as the official code does, whether or not it pastes."""
    model = deepcopy(ours.trainer.bare_model)
    counts = ours.datasets["train"].samples_per_class
    loop = BareLoop(model, counts, ours.method.context.input_builder, torch.float32, channels_last=False)
    original = baselines.pil(bench.folder, batch_size, bench.cores, baselines.Recipe.JITTERED)
    weighted = baselines.pil(bench.folder, batch_size, bench.cores, baselines.Recipe.JITTERED, weighted=True)
    rule = MixRule(plain_first=0, plain_last=0)

    def step(number: int) -> int:
        (images, labels), (pasted, pasted_labels) = (
            [tensor.to(bench.device, non_blocking=True) for tensor in next(loader)] for loader in (original, weighted)
        )
        mix = rule.draw(0, 0, number, 1, len(images), (224, 224))
        if mix.paste:
            top, left, bottom, right = mix.boxes[0].tolist()
            images[:, :, top:bottom, left:right] = pasted[:, :, top:bottom, left:right]
        return loop.train(images, labels, pasted_labels, float(mix.lam[0]))

    return rate_of_batches(map(step, range(warm_up + counted)), warm_up, counted, bench.device)
