"""All random decisions of a training step, made before anything is read: samples, views, paste, λ and box.

A plan is a pure function of (seed, epoch, step, row). A *step* is one optimizer step on one *global batch*; ranks and
micro-batches are contiguous parts of it, so the number of processes changes neither samples nor draws. Each rank draws
only its own rows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.mix_rule import MixPlan, MixRule
from pipeline.rng import RowDraws
from pipeline.sampling import Sampling, Shuffled
from pipeline.views.view import OneOf, View, ViewPlan, plan_view
from shards.reader import ShardSet

# Incremented whenever the same (seed, epoch, step) would give a different plan; checkpoints of other versions are
# refused.
PLAN_VERSION = 2

# Training-mode batch normalisation fails on a single value per channel.
_SMALLEST_PART = 2


@dataclass(frozen=True, order=True)
class Position:
    """A step of a run, usually the next one; both numbers start at 0."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Stream:
    """One source of batches, as declared by a method.

    Attributes:
        name: identifies the stream's batches, and is part of every generator's purpose: renaming it changes its draws.
        views: one description per image of a sample that a step needs.
        when: "mixing" streams exist only on steps that paste; on other steps they are neither read nor decoded.
        dataset: the key of its data set among those passed to the plan.
        first_epoch: first epoch in which the stream exists; before it, the stream is neither read nor decoded.
        full_batches: its batches keep the global batch size even if the last batch of an epoch is short.
    """

    name: str
    sampling: Sampling
    views: tuple[View | OneOf, ...]
    when: Literal["always", "mixing"] = "always"
    dataset: str = "train"
    first_epoch: int = 0
    full_batches: bool = False


def part_indices(size: int, index: int, parts: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Rows, int64, of part `index` of `parts` of a batch of `size`, and their weights, float32, 1 or 0.

    Parts are contiguous and their sizes differ by at most one. A part with fewer than 2 samples is padded with samples
    of weight 0 from the same batch, so every rank can run the step and no sample counts twice.
    """
    start, stop = size * index // parts, size * (index + 1) // parts
    padded_stop = max(stop, start + _SMALLEST_PART)
    rows = np.arange(start, padded_stop, dtype=np.int64)
    return rows % size, (rows < stop).astype(np.float32)


def micro_parts(index: int, shares: int, accumulation: int) -> list[tuple[int, int]]:
    """The parts, as in `part_indices`, that one of several equal shares of a step (a rank, a machine) reads."""
    return [(micro * shares + index, accumulation * shares) for micro in range(accumulation)]


@dataclass(frozen=True)
class StreamPlan:
    """One stream's plan for one step: its whole global batch or B rows of it.

    Attributes:
        rows: int64 (B,), row numbers in the global batch.
        weights: float32 (B,), 1, or 0 for a padding sample.
        sample_ids, labels: int64 (B,).
        views: one plan per view of the stream.
    """

    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    sample_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    views: tuple[ViewPlan, ...]

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: the global batch of each stream it uses, and how they mix (None without a mix rule)."""

    epoch: int
    step: int
    streams: dict[str, StreamPlan]
    mix: MixPlan | None


@dataclass(frozen=True)
class GlobalBatch:
    """What every rank can know about a whole step: the sizes of its batches and their labels, for denominators.

    Attributes:
        sizes: number of samples over all ranks and micro-batches, by stream that the step uses.
        labels: returns a stream's labels, int64 (size,); they are drawn on first use.
        seed: the plan's, for a method's own draws (`train.methods.base.MicroPlan.uniform`).
    """

    epoch: int
    step: int
    sizes: Mapping[str, int]
    labels: Callable[[str], npt.NDArray[np.int64]]
    seed: int


class Plan:
    """All steps of a run; random access, no state.

    The first stream sets the length: an epoch has `len(its data set)` samples, and the last batch is short unless
    `drop_last`. Every other stream has batches of the same size, or always full ones.

    Attributes:
        datasets, streams, mix_rule, seed, global_batch_size, epochs, drop_last: as given.
        steps_per_epoch: number of global batches per epoch.
    """

    def __init__(
        self,
        datasets: Mapping[str, ShardSet],
        streams: tuple[Stream, ...],
        mix_rule: MixRule | None,
        seed: int,
        global_batch_size: int,
        epochs: int,
        drop_last: bool = False,
    ) -> None:
        """Raises ValueError if the arguments are inconsistent."""
        _check(datasets, streams, mix_rule, seed, global_batch_size, epochs)
        self.datasets = dict(datasets)
        self.streams = {stream.name: stream for stream in streams}
        self.mix_rule = mix_rule
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.epochs = epochs
        self.drop_last = drop_last
        self._epoch_samples = len(datasets[streams[0].dataset])
        self._image_size = (streams[0].views[0].size, streams[0].views[0].size)
        self._samplers = {stream.name: stream.sampling.over(datasets[stream.dataset]) for stream in streams}
        full, rest = divmod(self._epoch_samples, global_batch_size)
        self.steps_per_epoch = full if drop_last else full + (rest > 0)
        if not self.steps_per_epoch:
            raise ValueError(
                f"plan: the method drops short batches, and {self._epoch_samples} samples fill no batch of "
                f"{global_batch_size}; choose a smaller batch"
            )

    def __repr__(self) -> str:
        mixing = "no mixing" if self.mix_rule is None else f"mixing by {self.mix_rule.kind}"
        return (
            f"Plan(seed {self.seed}: {self.epochs} epochs of {self.steps_per_epoch:,} steps of "
            f"{self.global_batch_size} images, streams {', '.join(self.streams)}, {mixing})"
        )

    def step(self, epoch: int, step: int) -> StepPlan:
        """The plan of one step; both arguments start at 0."""
        used = [name for name in self.streams if self.uses(name, epoch, step)]
        return StepPlan(
            epoch, step, {name: self.stream_step(name, epoch, step) for name in used}, self.mix(epoch, step)
        )

    def global_batch(self, epoch: int, step: int) -> GlobalBatch:
        """A step's sizes and labels, without the rest of its plan."""
        sizes = {name: len(self._slots(epoch, step, name)) for name in self.streams if self.uses(name, epoch, step)}

        def labels(name: str) -> npt.NDArray[np.int64]:
            draws = RowDraws(self.seed, epoch, step, np.arange(sizes[name]))
            drawn = self._samplers[name].classes(draws, f"{name}/samples")
            return self._index(name)["label"][self._ids(name, draws)].astype(np.int64) if drawn is None else drawn

        return GlobalBatch(epoch, step, sizes, cache(labels), self.seed)

    def pastes(self, epoch: int, step: int) -> bool:
        """Whether the step mixes: a single coin, drawn without the rest of the plan."""
        return self.mix_rule is not None and self.mix_rule.mixes(self.seed, epoch, step, self.epochs)

    def paste_steps(self, epoch: int) -> npt.NDArray[np.int64]:
        """The steps of an epoch that mix, ascending."""
        if self.mix_rule is None:
            return np.empty(0, dtype=np.int64)
        return self.mix_rule.mixing_steps(self.seed, epoch, self.steps_per_epoch, self.epochs)

    def uses(self, stream_name: str, epoch: int, step: int) -> bool:
        """Whether the step has a batch of this stream."""
        stream = self.streams[stream_name]
        return epoch >= stream.first_epoch and (stream.when == "always" or self.pastes(epoch, step))

    def stream_step(self, stream_name: str, epoch: int, step: int, part: tuple[int, int] = (0, 1)) -> StreamPlan:
        """One stream's part of a step, whether the step uses it or not.

        part: (index, parts) as in `part_indices`; the rest of the batch is not drawn. By default the whole batch.
        """
        rows, weights = self._part(stream_name, epoch, step, part)
        draws = RowDraws(self.seed, epoch, step, rows)
        ids = self._ids(stream_name, draws)
        records = self._index(stream_name)[ids]
        views = tuple(
            plan_view(
                view,
                records["width"],
                records["height"],
                lambda operation, shape, number=number: draws.uniform(  # type: ignore[misc]
                    f"{stream_name}/view{number}/{operation}", shape
                ),
                progress=epoch / (self.epochs - 1) if self.epochs > 1 else 1.0,
            )
            for number, view in enumerate(self.streams[stream_name].views)
        )
        return StreamPlan(rows, weights, ids, records["label"].astype(np.int64), views)

    def sample_ids(
        self, stream_name: str, epoch: int, step: int, part: tuple[int, int] = (0, 1)
    ) -> npt.NDArray[np.int64]:
        """int64: the sample ids of `stream_step`, without the rest of it."""
        rows, _ = self._part(stream_name, epoch, step, part)
        return self._ids(stream_name, RowDraws(self.seed, epoch, step, rows))

    def twin(self) -> "Plan":
        """The same plan, for a thread that uses other epochs: each plan caches the order of its last epoch."""
        streams = tuple(self.streams.values())
        size, epochs = self.global_batch_size, self.epochs
        return Plan(self.datasets, streams, self.mix_rule, self.seed, size, epochs, self.drop_last)

    def mix(self, epoch: int, step: int, rows: int | None = None) -> MixPlan | None:
        """How this many rows of the step (by default all) are mixed; None if the plan has no mix rule."""
        if self.mix_rule is None:
            return None
        size = len(self._slots(epoch, step)) if rows is None else rows
        return self.mix_rule.draw(self.seed, epoch, step, self.epochs, size, self._image_size)

    def fingerprint(self) -> dict[str, Any]:
        """JSON that is equal for two plans if and only if all their steps are; checkpoints store and compare it.

        It does not include the number of ranks, which may change when a training run resumes.
        """
        return {
            "plan_version": PLAN_VERSION,
            "numpy": np.__version__,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "epochs": self.epochs,
            "drop_last": self.drop_last,
            "streams": [repr(stream) for stream in self.streams.values()],
            "mix_rule": repr(self.mix_rule),
            "datasets": {
                name: {"samples": len(dataset), "checksum": dataset.checksum} for name, dataset in self.datasets.items()
            },
        }

    def describe(self) -> str:
        """A few lines for the log: the derived sizes and each stream."""
        last = self._epoch_samples % self.global_batch_size
        end = "" if not last else f", last batch {'dropped' if self.drop_last else last}"
        mixing = [epoch for epoch in range(self.epochs) if self.mix_rule and self.mix_rule.active(epoch, self.epochs)]
        lines = [
            f"{self.epochs} epochs x {self.steps_per_epoch} steps, global batch {self.global_batch_size}{end}, "
            f"seed {self.seed}",
            *(
                f"stream {stream.name}: {stream.dataset} ({len(self.datasets[stream.dataset])} samples), "
                f"{stream.sampling}, {len(stream.views)} view(s), {stream.when}"
                for stream in self.streams.values()
            ),
            f"mixing: epochs {mixing[0]} to {mixing[-1]}, {self.mix_rule}" if mixing else "mixing: never",
        ]
        return "\n".join(lines)

    def positions(self, start: Position, stop: Position) -> Iterator[Position]:
        """The steps from `start` up to `stop`, in order."""
        for number in range(*(at.epoch * self.steps_per_epoch + at.step for at in (start, stop))):
            yield Position(*divmod(number, self.steps_per_epoch))

    def _part(
        self, stream_name: str, epoch: int, step: int, part: tuple[int, int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Rows and weights of a part of a step's batch, from `part_indices`; (0, 1) is the batch itself."""
        size = len(self._slots(epoch, step, stream_name))
        return part_indices(size, *part) if part != (0, 1) else (np.arange(size), np.ones(size, np.float32))

    def _ids(self, stream_name: str, draws: RowDraws) -> npt.NDArray[np.int64]:
        start = self._slots(draws.epoch, draws.step).start
        return self._samplers[stream_name].ids(draws, f"{stream_name}/samples", start)

    def _index(self, stream_name: str) -> np.ndarray:
        return self.datasets[self.streams[stream_name].dataset].index

    def _slots(self, epoch: int, step: int, stream_name: str | None = None) -> range:
        """The step's places in the epoch, by default those of the first stream."""
        if not (0 <= epoch < self.epochs and 0 <= step < self.steps_per_epoch):
            raise ValueError(
                f"plan: no step {step} of epoch {epoch}; there are {self.epochs} epochs of {self.steps_per_epoch} steps"
            )
        start = step * self.global_batch_size
        full = stream_name is not None and self.streams[stream_name].full_batches
        stop = start + self.global_batch_size
        return range(start, stop if full else min(stop, self._epoch_samples))


def _check(
    datasets: Mapping[str, ShardSet],
    streams: tuple[Stream, ...],
    mix_rule: MixRule | None,
    seed: int,
    global_batch_size: int,
    epochs: int,
) -> None:
    first_is_lasting = bool(streams) and streams[0].when == "always" and streams[0].first_epoch == 0
    if not first_is_lasting or streams[0].full_batches:
        raise ValueError("plan: expected a first stream that is used on every step; it sets the length of an epoch")
    names = [stream.name for stream in streams]
    if len(set(names)) < len(names):
        raise ValueError(f"plan: stream names must differ, found {names}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"plan: seed must be in [0, 2^64), found {seed}")
    if global_batch_size < _SMALLEST_PART or epochs < 1:
        raise ValueError(
            f"plan: expected a global batch of at least {_SMALLEST_PART} and at least 1 epoch, "
            f"found {global_batch_size} and {epochs}"
        )
    for stream in streams:
        if not stream.views:
            raise ValueError(f"plan: stream {stream.name} has no view")
        if stream.dataset not in datasets:
            raise ValueError(
                f"plan: stream {stream.name} reads the data set {stream.dataset!r}; given are {sorted(datasets)}; "
                f"name a shard set with --data.{stream.dataset}"
            )
        if stream.when == "mixing" and mix_rule is None:
            raise ValueError(f"plan: stream {stream.name} exists only on mixing steps, but there is no mix rule")
    first = streams[0]
    samples = len(datasets[first.dataset])
    if samples < global_batch_size:
        raise ValueError(
            f"plan: the data set {first.dataset!r} has {samples} samples, fewer than one global batch of "
            f"{global_batch_size}; set a global batch of at most {samples}"
        )
    for stream in streams[1:]:
        needed = -(-samples // global_batch_size) * global_batch_size if stream.full_batches else samples
        if isinstance(stream.sampling, Shuffled) and len(datasets[stream.dataset]) < needed:
            raise ValueError(
                f"plan: stream {stream.name} shuffles {len(datasets[stream.dataset])} samples, but an epoch has "
                f"{needed} ({first.name} sets it); use a class-weighted stream, which draws with replacement"
            )
