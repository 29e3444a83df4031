"""Trained images per second, end to end: from shards, on resident random data, in the official structure."""

from copy import deepcopy
from itertools import cycle

import numpy as np
import torch

from pipeline.mix_rule import MixRule
from tools.benchmarks import baselines
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Target, compare, rate_of_batches
from tools.benchmarks.rig import BareLoop, make_run, step_seconds, synthetic_steps, train_rate
from train.run import Run

SYNTHETIC = "resident random images"
SHARDS = "from shards"
OFFICIAL = "official structure: two PIL loaders, fp32, NCHW"


def run(bench: Bench) -> Report:
    """CMO with the ImageNet-LT recipe. On a CPU network and decoding share the cores, so only OFFICIAL compares."""
    on_gpu = bench.device.type == "cuda"
    model, batch_size = ("resnet50", 256) if on_gpu else ("test_resnet", min(32, bench.scale.batch_size))
    counted = 500 if on_gpu and bench.scale.batches >= 50 else bench.scale.batches
    settings = {**bench.settings(), "model": model, "batch_size": batch_size, "batches": counted}
    report = Report("train", bench.describe(), settings)
    ours = make_run(bench, model, "imagenet", batch_size, mixed_precision="bf16" if on_gpu else "no")
    resident = synthetic_steps(ours, 20 if on_gpu else 4)
    warm_up = 2 * bench.cores + 2
    last_times: list[np.ndarray] = []

    def from_shards() -> float:
        with ours.make_loader() as loader:
            rate, times = step_seconds(ours, loader, warm_up, counted)
        last_times.append(times)
        return rate

    table = compare(
        "trained images",
        "images/s",
        {
            SYNTHETIC: lambda: train_rate(ours, cycle(resident), warm_up, counted),
            SHARDS: from_shards,
            OFFICIAL: lambda: _official(bench, ours, batch_size, warm_up, counted),
        },
        bench.scale.rounds,
    )
    report.tables.append(table)
    tail = float(np.quantile(last_times[-1], 0.99) / np.median(last_times[-1]))
    report.notes["step_time_p99_over_median"] = round(tail, 3)
    if on_gpu:
        report.targets = [
            Target("from shards / resident", table.ratio(SHARDS, SYNTHETIC), 0.95),
            Target("step time, p99 / median", tail, 1.2, at_most=True),
            Target("from shards / official structure", table.ratio(SHARDS, OFFICIAL), 3.0),
        ]
    return report


def _official(bench: Bench, ours: Run, batch_size: int, warm_up: int, counted: int) -> float:
    """Both loaders are read on every step, as there, whether it pastes or not."""
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
