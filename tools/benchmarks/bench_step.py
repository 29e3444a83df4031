"""The training step on resident images: the overhead of the loop; on a GPU also what speeds it up."""

import math
from copy import deepcopy
from itertools import cycle

import torch

from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Table, Target, Variant, compare
from tools.benchmarks.rig import BareLoop, make_run, synthetic_steps, train_rate
from train.run import Run

BARE = "bare loop"
OURS = "this project's loop (Accelerate)"
GRAPHS = "CUDA graphs"
_CIFAR100_STEPS = 200 * 85  # epochs, and batches of 128 in its 10,847 images at imbalance 100
_CAPTURING = 20  # steps after which those that paste and those that do not are captured


def run(bench: Bench) -> Report:
    """On a CPU only a network that is practical there, and only the comparison of the loops."""
    on_gpu = bench.device.type == "cuda"
    small = ("resnet32", "cifar", min(128, 2 * bench.scale.batch_size), 4)
    large = ("resnet50", "imagenet", bench.fitting(256), 20)
    model, preset, batch_size, count = large if on_gpu else small
    # More and shorter rounds than elsewhere: 2 % are to be told apart.
    rounds = (2 if on_gpu else 5) * bench.scale.rounds
    settings = {**bench.settings(), "model": model, "batch_size": batch_size, "batches": count, "rounds": rounds}
    ours = make_run(bench, model, preset, batch_size, mixed_precision="bf16" if on_gpu else "no")
    side = ours.preset.train.size
    report = Report("step", {"images": "random", "size": f"{side} x {side}"}, settings, saved_to=bench.saved_to)
    loops = _loops(ours, count, rounds)
    report.add(loops)
    report.targets.append(Target("Accelerate loop / bare loop", loops.ratio(OURS, BARE), 0.98))
    if on_gpu:
        _gpu_tables(bench, report, ours, count)
    return report


def _loops(run: Run, count: int, rounds: int) -> Table:
    on_gpu = run.accelerator.device.type == "cuda"
    steps, warm_up = synthetic_steps(run, count), 1
    bare = _bare(run, torch.bfloat16 if on_gpu else torch.float32, channels_last=True)
    variants: dict[str, Variant] = {
        BARE: bare.variant(steps, warm_up),
        OURS: lambda: train_rate(run, [*steps[:warm_up], *steps], warm_up, len(steps)),
    }
    return compare("the loop", "images/s", variants, rounds)


def _gpu_tables(bench: Bench, report: Report, ours: Run, count: int) -> None:
    _add_small(bench, report, count)
    _add_layouts(bench, report, ours, count)


def _add_layouts(bench: Bench, report: Report, ours: Run, count: int) -> None:
    steps = synthetic_steps(ours, count)
    compiled = _bare(ours, torch.bfloat16, channels_last=True)
    compiled.model.compile(dynamic=False)
    layouts = {
        "bf16, NCHW": _bare(ours, torch.bfloat16, channels_last=False),
        "bf16, channels last": _bare(ours, torch.bfloat16, channels_last=True),
        "bf16, channels last, compiled": compiled,
        "fp32, NCHW": _bare(ours, torch.float32, channels_last=False),
    }
    variants = {name: loop.variant(steps, warm_up=5) for name, loop in layouts.items()}
    table = compare("layout and precision, bare loop", "images/s", variants, bench.scale.rounds)
    report.targets += [
        Target("channels last / NCHW, bf16", table.ratio("bf16, channels last", "bf16, NCHW"), 1.4),
        Target("compiled / eager", table.ratio("bf16, channels last, compiled", "bf16, channels last"), 1.15),
    ]
    report.add(table)


def _add_small(bench: Bench, report: Report, count: int) -> None:
    """CIFAR's network, whose kernels are shorter than their launches."""
    ways = {
        "eager": {},
        "compiled": {"compile": "true"},
        GRAPHS: {"cuda_graphs": "true"},
        f"compiled, {GRAPHS}": {"compile": "true", "cuda_graphs": "true"},
    }
    batch_size = bench.fitting(128)
    small = {
        name: make_run(bench, "resnet32", "cifar", batch_size, mixed_precision="bf16", **choice)
        for name, choice in ways.items()
    }
    small_steps = synthetic_steps(small["eager"], count)
    counted = 100 if bench.device.type == "cuda" else count  # of a millisecond or two

    def small_variant(run: Run) -> Variant:
        return lambda: train_rate(run, cycle(small_steps), _CAPTURING, counted)

    table = compare(
        f"ResNet-32, batch {batch_size} of 32 x 32 pixels, this project's loop",
        "images/s",
        {name: small_variant(run) for name, run in small.items()},
        bench.scale.rounds,
    )
    milliseconds = {row.name: round(1000 * batch_size / row.rate, 3) for row in table.rows if not row.failed}
    report.notes["milliseconds_a_small_step"] = milliseconds
    fastest = min(milliseconds.values(), default=math.nan)
    report.targets += [
        Target("CIFAR step: CUDA graphs / eager", table.ratio(GRAPHS, "eager"), 3.0),
        Target("seconds of CIFAR-100-LT's steps, 200 epochs", _CIFAR100_STEPS * fastest / 1000, 30, at_most=True),
    ]
    report.add(table)


def _bare(run: Run, precision: torch.dtype, channels_last: bool) -> BareLoop:
    """A bare loop with a copy of the run's network."""
    model = deepcopy(run.trainer.bare_model)
    counts = run.datasets["train"].samples_per_class
    return BareLoop(model, counts, run.method.context.input_builder, precision, channels_last)
