"""Batches for the training loop and for evaluation: this rank's part of each step, on the device, prefetched.

The loader has no random state and no position to save: started at any (epoch, step), it serves exactly what an
uninterrupted run would have served from there.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch

from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.executor import Executor, FinishedBatch
from pipeline.executors.factory import (
    ExecutorName,
    choose_executor,
    decode_threads_per_rank,
    make_executor,
    ranks_here,
)
from pipeline.labels_ahead import LabelsAhead
from pipeline.mix_rule import MixPlan
from pipeline.plan import GlobalBatch, Plan, Position, StreamPlan, micro_parts
from pipeline.rng import RowDraws
from pipeline.transfer import to_device
from pipeline.upcoming import Upcoming
from pipeline.views.view import OneOf, View, plan_view
from shards.reader import ShardSet

_START = Position(0, 0)


@dataclass(frozen=True)
class Batch:
    """A part of a stream's batch, on the device.

    Attributes:
        images: one uint8 (B, height, width, 3) tensor per view; already augmented, not yet normalised.
        labels: int64 (B,).
        weights: float32 (B,), 1, or 0 for a padding sample, which must not count in any loss or metric.
        served: the plan that produced these images, on the host; a bad sample's entry has its replacement's id.
    """

    images: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    weights: torch.Tensor
    served: StreamPlan

    @property
    def sample_ids(self) -> npt.NDArray[np.int64]:
        """int64 (B,), on the host."""
        return self.served.sample_ids


@dataclass(frozen=True)
class MicroBatch:
    """One rank's share of one forward and backward pass.

    Attributes:
        batches: by stream; streams that the step does not use are absent.
        mix: how the rows of the first stream are mixed; None without a mix rule.
        positions: int64 (B,), this micro-batch's rows of the first stream's global batch.
    """

    batches: Mapping[str, Batch]
    mix: MixPlan | None
    positions: npt.NDArray[np.int64]


@dataclass(frozen=True)
class LoadedStep:
    """One optimizer step of this rank.

    Attributes:
        whole: properties of the whole step over all ranks, for denominators.
        micro_batches: this rank's, in order.
        wait_seconds: how long the training loop waited for this step's data.
    """

    whole: GlobalBatch
    micro_batches: list[MicroBatch]
    wait_seconds: float


class Loader:
    """Iterates once over the steps of a plan from `start` up to `stop`: `for loaded in loader`.

    The global batch is cut into `world_size * accumulation` contiguous parts; micro-batch m of rank r is part
    `m * world_size + r`. The union over ranks and micro-batches is the global batch for any world size.

    Close it, or use it as a context manager: executors own threads and device memory.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        start: Position = _START,
        stop: Position | None = None,
        executor: ExecutorName = "auto",
        decode_threads: int | None = None,
        bad_sample_budget: int = 10,
    ) -> None:
        """
        Args:
            start, stop: the first step, and the step before which to stop (default: the end of the plan).
            decode_threads: CPU threads of each stream's executor; by default the cores divided by the local ranks.
            bad_sample_budget: how many samples of a data set may be unreadable before the run stops.
        """
        if not 0 <= rank < world_size or accumulation < 1:
            raise ValueError(f"loader: rank {rank} of {world_size} with accumulation {accumulation} does not exist")
        parts = world_size * accumulation
        if plan.global_batch_size < 2 * parts:
            raise ValueError(
                f"loader: a global batch of {plan.global_batch_size} leaves fewer than 2 samples for each of {parts} "
                f"parts ({world_size} ranks x {accumulation} micro-batches); at least {2 * parts} are needed"
            )
        self._plan = plan
        self._device = device
        self._parts = micro_parts(rank, world_size, accumulation)
        self._span = start, stop or Position(plan.epochs, 0)
        self._labels_ahead = LabelsAhead(plan, self._span[1])
        self._upcoming = Upcoming(plan, start, _machine(rank, world_size), accumulation)
        for name, dataset in plan.datasets.items():
            dataset.expect(partial(self._upcoming.next_uses, name))
        self.bad_samples = {
            name: BadSamples(plan.datasets[name], bad_sample_budget)
            for name in {stream.dataset for stream in plan.streams.values()}
        }
        self.executor_names = {
            name: choose_executor(executor, plan.datasets[stream.dataset]) for name, stream in plan.streams.items()
        }
        self._feeds: dict[str, _Feed] = {}
        try:
            for name in plan.streams:
                threads = decode_threads or decode_threads_per_rank(world_size)
                self._feeds[name] = self._feed(name, threads, -(-plan.global_batch_size // parts))
        except BaseException:
            self.close()  # the threads of the streams that did start
            raise
        self._steps = self._serve()

    def __iter__(self) -> Iterator[LoadedStep]:
        return self._steps

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all executors; afterwards none of this loader's threads and pipelines is left."""
        for feed in self._feeds.values():
            feed.close()
        self._labels_ahead.close()
        for dataset in self._plan.datasets.values():
            dataset.expect(None)

    def _feed(self, stream_name: str, threads: int, largest_batch: int) -> "_Feed":
        stream = self._plan.streams[stream_name]
        executor = make_executor(
            self.executor_names[stream_name],
            self._plan.datasets[stream.dataset],
            stream.views,
            self._device,
            threads,
            largest_batch,
            self.bad_samples[stream.dataset],
        )
        return _Feed(executor, self._requests(stream_name), self._device)

    def _requests(self, stream_name: str) -> Iterator[StreamPlan]:
        """This rank's parts of one stream, in order. Runs ahead of training, in the executor's thread."""
        for at in self._plan.positions(*self._span):
            if self._plan.uses(stream_name, at.epoch, at.step):
                for part in self._parts:
                    yield self._plan.stream_step(stream_name, at.epoch, at.step, part)

    def _serve(self) -> Iterator[LoadedStep]:
        for at in self._plan.positions(*self._span):
            started = time.perf_counter()
            self._upcoming.now = at
            whole = self._labels_ahead.global_batch(at)
            micro_batches = [self._micro_batch(whole) for _ in self._parts]
            yield LoadedStep(whole, micro_batches, time.perf_counter() - started)

    def _micro_batch(self, whole: GlobalBatch) -> MicroBatch:
        batches = {name: self._feeds[name].next_batch() for name in whole.sizes}
        positions = next(iter(batches.values())).served.rows
        return MicroBatch(batches, self._plan.mix(whole.epoch, whole.step, len(positions)), positions)


def _machine(rank: int, world_size: int) -> tuple[int, int]:
    """The part of a batch that this machine's ranks read: (index, parts). Launchers number them consecutively; if
    machines have different numbers of ranks, only this rank's part is known.
    """
    here = ranks_here(world_size)
    return (rank // here, world_size // here) if here and world_size % here == 0 else (rank, world_size)


class _Feed:
    """One stream's executor, with its results as batches on the device."""

    def __init__(self, executor: Executor, requests: Iterator[StreamPlan], device: torch.device) -> None:
        self._executor = executor
        self._device = device
        self._finished: Generator[FinishedBatch] = executor.run(requests)

    def next_batch(self) -> Batch:
        plan, images = next(self._finished)
        labels, weights = (to_device(torch.from_numpy(each), self._device) for each in (plan.labels, plan.weights))
        return Batch(images, labels, weights, plan)

    def close(self) -> None:
        self._executor.close()
        self._finished.close()


def evaluation_batches(
    dataset: ShardSet,
    view: View | OneOf | tuple[View | OneOf, ...],
    batch_size: int,
    device: torch.device,
    *,
    rank: int = 0,
    world_size: int = 1,
    executor: ExecutorName = "auto",
    decode_threads: int | None = None,
    sample_ids: npt.NDArray[np.int64] | None = None,
) -> Iterator[Batch]:
    """Each sample exactly once over all ranks, in id order; the last batch of a rank may be short.

    `view` may be several views; each batch then has images of all of them. `sample_ids` selects samples; by default
    all. A rank has a contiguous range of the ids, and ranges differ by at most one sample. An unreadable sample stops
    the evaluation: replacing it would make the result wrong.
    """
    views = view if isinstance(view, tuple) else (view,)
    chosen_ids = np.arange(len(dataset)) if sample_ids is None else sample_ids
    start, stop = len(chosen_ids) * rank // world_size, len(chosen_ids) * (rank + 1) // world_size

    def requests() -> Iterator[StreamPlan]:
        for first in range(start, stop, batch_size):
            ids = chosen_ids[first : min(first + batch_size, stop)]
            records = dataset.index[ids]
            # Evaluation views draw nothing; if one does, its draws are still a function of the sample.
            planned = tuple(
                plan_view(one, records["width"], records["height"], RowDraws(0, 0, 0, ids).uniform) for one in views
            )
            weights = np.ones(len(ids), dtype=np.float32)
            yield StreamPlan(ids, weights, ids, records["label"].astype(np.int64), planned)

    threads = decode_threads or decode_threads_per_rank(world_size)
    bad_samples = BadSamples(dataset, budget=0)
    chosen = choose_executor(executor, dataset)
    running = make_executor(chosen, dataset, views, device, threads, batch_size, bad_samples)
    with closing(_Feed(running, requests(), device)) as feed:
        for _ in range(start, stop, batch_size):
            yield feed.next_batch()
