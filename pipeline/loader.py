"""Batches for the training loop and for evaluation: this rank's part of each step, on the device, prefetched.

The loader holds no random state and no position that matters: given (epoch, step) to start from, it serves exactly
what an uninterrupted run would have served from there.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch

from pipeline.augmentation.augment import augment
from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.factory import Executor, ExecutorName, choose_executor, decode_threads_per_rank, make_executor
from pipeline.mix_rule import MixPlan
from pipeline.plan import Plan, StepPlan, StreamPlan, part_indices
from pipeline.rng import generator
from pipeline.transfer import to_device
from pipeline.views.view import OneOf, View, plan_view
from shards.reader import ShardSet

Position = tuple[int, int]
"""(epoch, step), both from 0."""


@dataclass(frozen=True)
class Batch:
    """A part of a stream's batch, on the device.

    Attributes:
        images: one uint8 (B, height, width, 3) tensor a view; already augmented, not yet normalised.
        labels: int64 (B,).
        weights: float32 (B,), 1, or 0 for a padding sample, which must count in no loss and no metric.
        sample_ids: int64 (B,), on the host, as planned; the log says which bad sample was replaced by which other.
    """

    images: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    weights: torch.Tensor
    sample_ids: npt.NDArray[np.int64]


@dataclass(frozen=True)
class LoadedStep:
    """One optimizer step of this rank.

    Attributes:
        plan: the whole step, all ranks: for denominators that belong to the global batch.
        micro_batches: for each micro-batch, a `Batch` by stream name; streams that the step does not use are absent.
        micro_mixes: for each micro-batch, the mix of its samples; None without a mix rule.
        wait_seconds: how long the training loop stood still for this step's data.
    """

    plan: StepPlan
    micro_batches: list[dict[str, Batch]]
    micro_mixes: list[MixPlan | None]
    wait_seconds: float


class Loader:
    """Serves the steps of a plan from ``start`` up to ``stop``, once: ``for loaded in loader``.

    The global batch is cut into ``world_size * accumulation`` contiguous parts; micro-batch m of rank r is part
    ``m * world_size + r``. The union over ranks and micro-batches is the global batch, whatever the world size.

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
        start: Position = (0, 0),
        stop: Position | None = None,
        executor: ExecutorName = "auto",
        decode_threads: int | None = None,
        bad_sample_budget: int = 10,
    ) -> None:
        """
        Args:
            start, stop: the first step, and the one before which to end (default: the end of the plan).
            decode_threads: CPU threads of each stream's executor; by default the cores divided by the local ranks.
            bad_sample_budget: how many samples of a data set may turn out unreadable before the run ends.
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
        self._parts = parts
        self._part_of_micro_batch = [micro * world_size + rank for micro in range(accumulation)]
        self._start, self._stop = start, stop or (plan.epochs, 0)
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
                self._feeds[name] = self._feed(name, decode_threads or decode_threads_per_rank(world_size))
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
        """Stop all executors; afterwards no thread and no pipeline of this loader is left."""
        for feed in self._feeds.values():
            feed.close()

    def _feed(self, stream_name: str, threads: int) -> "_Feed":
        stream = self._plan.streams[stream_name]
        executor = make_executor(
            self.executor_names[stream_name],
            self._plan.datasets[stream.dataset],
            stream.views,
            self._device,
            threads,
            -(-self._plan.global_batch_size // self._parts),
            self.bad_samples[stream.dataset],
        )
        return _Feed(executor, self._requests(stream_name), self._device)

    def _positions(self) -> Iterator[Position]:
        epoch, step = self._start
        while (epoch, step) < self._stop:
            yield epoch, step
            step += 1
            if step == self._plan.steps_per_epoch:
                epoch, step = epoch + 1, 0

    def _requests(self, stream_name: str) -> Iterator["_Request"]:
        """The parts of this rank that one stream needs, in order. Runs ahead of training, in the executor's thread."""
        for epoch, step in self._positions():
            if self._plan.uses(stream_name, epoch, step):
                whole = self._plan.stream_step(stream_name, epoch, step)
                for index in self._part_of_micro_batch:
                    part, weights = whole.part(index, self._parts)
                    yield _Request(whole, part, weights)

    def _serve(self) -> Iterator[LoadedStep]:
        for epoch, step in self._positions():
            started = time.perf_counter()
            used = [name for name in self._feeds if self._plan.uses(name, epoch, step)]
            micro_batches: list[dict[str, Batch]] = []
            for _ in self._part_of_micro_batch:
                micro_batches.append({name: self._feeds[name].next_batch() for name in used})
            mix = self._plan.mix(epoch, step)
            whole = StepPlan(epoch, step, {name: self._feeds[name].whole for name in used}, mix)
            micro_mixes = [mix and mix.take(self._indices(len(mix), index)) for index in self._part_of_micro_batch]
            yield LoadedStep(whole, micro_batches, micro_mixes, time.perf_counter() - started)

    def _indices(self, size: int, index: int) -> npt.NDArray[np.int64]:
        return part_indices(size, index, self._parts)[0]


@dataclass(frozen=True)
class _Request:
    whole: StreamPlan
    part: StreamPlan
    weights: npt.NDArray[np.float32]


class _Feed:
    """One stream's executor, and what was asked of it but not yet delivered."""

    def __init__(self, executor: Executor, requests: Iterator[_Request], device: torch.device) -> None:
        self.whole: StreamPlan
        self._executor = executor
        self._device = device
        # Appended by the executor's read-ahead thread, popped by the training loop: a deque needs no lock for that.
        self._asked: deque[_Request] = deque()
        self._images = executor.run(self._ask(requests))

    def _ask(self, requests: Iterator[_Request]) -> Iterator[StreamPlan]:
        for request in requests:
            self._asked.append(request)
            yield request.part

    def next_batch(self) -> Batch:
        images = next(self._images)
        request = self._asked.popleft()
        self.whole = request.whole
        plan = request.part
        return Batch(
            tuple(
                augment(view, planned.operations, self._executor.augmenting_pool)
                for view, planned in zip(images, plan.views, strict=True)
            ),
            to_device(torch.from_numpy(plan.labels), self._device),
            to_device(torch.from_numpy(request.weights), self._device),
            plan.sample_ids,
        )

    def close(self) -> None:
        self._executor.close()
        self._images.close()


def evaluation_batches(
    dataset: ShardSet,
    view: View | OneOf,
    batch_size: int,
    device: torch.device,
    *,
    rank: int = 0,
    world_size: int = 1,
    executor: ExecutorName = "auto",
    decode_threads: int | None = None,
) -> Iterator[Batch]:
    """Each sample exactly once over all ranks, in the order of the ids; the last batch of a rank is short.

    A rank has a contiguous range of the ids, and ranges differ by at most one sample. A sample that cannot be read
    ends the evaluation: a replaced one would make the number wrong.
    """
    start, stop = len(dataset) * rank // world_size, len(dataset) * (rank + 1) // world_size

    def requests() -> Iterator[_Request]:
        for first in range(start, stop, batch_size):
            ids = np.arange(first, min(first + batch_size, stop))
            records = dataset.index[ids]
            # Evaluation views draw nothing; if one does, it is a function of the position all the same.
            planned = plan_view(
                view,
                records["width"],
                records["height"],
                lambda operation, first=first: generator(0, f"evaluation/{operation}", 0, first),  # type: ignore[misc]
            )
            part = StreamPlan(ids, records["label"].astype(np.int64), (planned,))
            yield _Request(part, part, np.ones(len(part), dtype=np.float32))

    threads = decode_threads or decode_threads_per_rank(world_size)
    bad_samples = BadSamples(dataset, budget=0)
    chosen = choose_executor(executor, dataset)
    running = make_executor(chosen, dataset, (view,), device, threads, batch_size, bad_samples)
    with closing(_Feed(running, requests(), device)) as feed:
        for _ in range(start, stop, batch_size):
            yield feed.next_batch()
