"""A run of `python -m train`, taken apart: the trainer over steps that a benchmark provides and times, and a bare loop
with the same arithmetic but without Accelerate and bookkeeping.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.loader import Batch, LoadedStep, MicroBatch
from pipeline.plan import Position, StreamPlan
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Variant, now
from train.datasets import open_datasets
from train.inputs.input_builder import InputBuilder
from train.launch import make_accelerator
from train.options import parse
from train.run import Run
from train.run_folder import RunFolder

# An epoch in CMO's window, where half of the steps paste.
_EPOCH = 4


def make_run(bench: Bench, model: str, preset: str, batch_size: int, **options: str) -> Run:
    """CMO with the balanced softmax on the benchmark's shards, ready to train from epoch 4.

    options: further options of the run, such as cuda_graphs="true".
    """
    number = len(list(bench.scratch.glob("run-*")))
    folder = bench.scratch / f"run-{number}"
    arguments = {
        "data.train": bench.shards.path,
        "data.test": bench.shards.path,
        "data.preset": preset,
        "data.executor": "dali",
        "model.name": model,
        "method.name": "cmo",
        "method.loss": "bs",
        "batch_size": batch_size,
        "epochs": 100_000,
        "log_every_steps": 1_000_000,
        "run_dir": folder,
        "trackers": "[]",
        **options,
    }
    parsed = parse([part for name, value in arguments.items() for part in (f"--{name}", str(value))])
    folder.mkdir()
    run = Run(parsed, RunFolder(folder, 1), open_datasets(parsed.data), make_accelerator(parsed.run))
    run.trainer.position = Position(_EPOCH, 0)
    run.progress.enabled = False  # its rates would include the rounds of other variants
    return run


def synthetic_steps(run: Run, count: int) -> list[LoadedStep]:
    """Planned steps with random images already on the device."""
    generator = torch.Generator().manual_seed(0)
    device, side = run.accelerator.device, run.preset.train.size

    def batch(stream: StreamPlan) -> Batch:
        shape = (len(stream), side, side, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels, weights = torch.from_numpy(stream.labels), torch.from_numpy(stream.weights)
        return Batch((images.to(device),), labels.to(device), weights.to(device), stream)

    full_steps = run.plan.steps_per_epoch - 1
    loaded = []
    for number in range(count):
        at = _EPOCH + number // full_steps, number % full_steps
        planned = run.plan.step(*at)
        batches = {name: batch(stream) for name, stream in planned.streams.items()}
        micro = MicroBatch(batches, planned.mix, planned.streams["original"].rows)
        loaded.append(LoadedStep(run.plan.global_batch(*at), [micro], 0.0))
    return loaded


def train_rate(run: Run, steps: Iterable[LoadedStep], warm_up: int, counted: int) -> float:
    """The trainer's images per second over these steps, without the first `warm_up`."""
    return step_seconds(run, steps, warm_up, counted)[0]


def step_seconds(run: Run, steps: Iterable[LoadedStep], warm_up: int, counted: int) -> tuple[float, np.ndarray]:
    """Images per second, and each counted step's time as seen by the host, float64 (counted,) in seconds.

    The host waits for the device one step late (see train.loop.signals), so its times are those of the device.
    """
    device = run.accelerator.device
    times: list[float] = []
    images = 0

    def timed() -> Iterator[LoadedStep]:
        nonlocal images
        for number, loaded in enumerate(itertools.islice(steps, warm_up + counted)):
            if number >= warm_up:
                times.append(now(device) if number == warm_up else now(_HOST))
                images += loaded.whole.sizes["original"]
            # Never an epoch's first or last step, so only steps are measured.
            yield replace(loaded, whole=replace(loaded.whole, epoch=_EPOCH, step=1))
        times.append(now(device))

    run.trainer.run(timed())
    return images / (times[-1] - times[0]), np.diff(times)


_HOST = torch.device("cpu")


class BareLoop:
    """Forward, balanced softmax, backward, optimizer: a loop written without this project's trainer.

    Args:
        precision: dtype of the network's arithmetic.
        channels_last: memory layout of weights and input.
    """

    def __init__(
        self,
        model: nn.Module,
        samples_per_class: np.ndarray,
        input_builder: InputBuilder,
        precision: torch.dtype = torch.float32,
        channels_last: bool = True,
    ):
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self._format)
        self._assembler, self._precision = input_builder, precision
        self.device = input_builder.mean.device
        counts = torch.from_numpy(samples_per_class).float()
        self._log_prior = (counts / counts.sum()).log().to(self.device)
        self._optimizer = torch.optim.SGD(
            model.parameters(), 0.1, 0.9, weight_decay=2e-4, fused=self.device.type == "cuda"
        )

    def step(self, loaded: LoadedStep) -> int:
        """Train on a step of the loader's batches; returns the number of images."""
        batches, mix = loaded.micro_batches[0].batches, loaded.micro_batches[0].mix
        background = batches["original"]
        if mix is None or not mix.paste:
            return self.train(self._assembler.plain(background.images[0]), background.labels, background.labels, 1.0)
        foreground = batches["foreground"]
        boxes = torch.from_numpy(mix.boxes).to(self.device, non_blocking=True)
        pasted = self._assembler.paste(background.images[0], foreground.images[0], boxes)
        return self.train(pasted, background.labels, foreground.labels, float(mix.lam[0]))

    def train(self, images: Tensor, labels: Tensor, pasted_labels: Tensor, lam: float) -> int:
        """Train on normalised images (batch, 3, height, width)."""
        images = images.contiguous(memory_format=self._format)
        lowered = self._precision != torch.float32
        with torch.autocast(self.device.type, dtype=self._precision) if lowered else nullcontext():
            logits = self.model(images)
        logits = logits.float() + self._log_prior
        loss = functional.cross_entropy(logits, labels)
        if lam < 1:
            loss = lam * loss + (1 - lam) * functional.cross_entropy(logits, pasted_labels)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return len(images)

    def variant(self, steps: list[LoadedStep], warm_up: int) -> Variant:
        """A round over these steps, after repeating the first `warm_up` of them."""

        def once() -> float:
            for loaded in steps[:warm_up]:
                self.step(loaded)
            started = now(self.device)
            images = sum(self.step(loaded) for loaded in steps)
            return images / (now(self.device) - started)

        return once
