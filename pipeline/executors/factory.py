"""Executors turn a planned batch into pixels: decode or gather, crop, resize, flip. Which one, and with what."""

import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import torch

from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.decode_settings import decode_settings
from pipeline.plan import StreamPlan
from pipeline.views.view import OneOf, View
from shards.reader import ShardSet

ExecutorName = Literal["auto", "dali", "resident", "reference"]


class Executor(Protocol):
    """Executes the plans of one stream; operations after the flip are not its business (see ``augment``)."""

    @property
    def augmenting_pool(self) -> ThreadPoolExecutor | None:
        """Threads that compute alone, for the caller's work on a batch, where torch's would meet the executor's own."""

    def run(self, requests: Iterator[StreamPlan]) -> Generator[tuple[torch.Tensor, ...]]:
        """One tuple per request, in order: for each view uint8 (B, height, width, 3) on the executor's device.

        ``requests`` is consumed ahead of what is yielded, possibly in a thread. Called once in an executor's life.
        """

    def close(self) -> None:
        """Stop threads and free what the device holds; safe to call twice."""


def choose_executor(name: ExecutorName, dataset: ShardSet) -> ExecutorName:
    """Resolve "auto": sets of small equal images stay decoded on the device, all others are decoded by DALI."""
    if name != "auto":
        return name
    from pipeline.executors.resident import fits_resident

    return "resident" if fits_resident(dataset) else "dali"


def make_executor(
    name: ExecutorName,
    dataset: ShardSet,
    views: tuple[View | OneOf, ...],
    device: torch.device,
    decode_threads: int,
    largest_batch: int,
    bad_samples: BadSamples,
) -> Executor:
    """An executor for one stream of ``dataset``; raises ValueError where it cannot serve that data set or these views.

    Args:
        name: as ``choose_executor`` gives it.
        views: the views of the stream: they decide the shape of a decode graph.
        device: where the images are wanted; DALI decodes on it.
        decode_threads: CPU threads of this executor.
        largest_batch: no request has more samples.
        bad_samples: the data set's, shared by its streams.
    """
    # Imported here: DALI takes seconds to load, and a run on resident images does not need it.
    if name == "dali":
        from pipeline.executors.dali import DaliExecutor

        settings = decode_settings(device, decode_threads)
        return DaliExecutor(dataset, views, device, settings, largest_batch, bad_samples)
    if name == "resident":
        from pipeline.executors.resident import ResidentExecutor

        return ResidentExecutor(dataset, device, decode_threads, bad_samples)
    if name == "reference":
        from pipeline.executors.reference import ReferenceExecutor

        return ReferenceExecutor(dataset, device, decode_threads, bad_samples)
    raise ValueError(f"executor: expected auto, dali, resident or reference, found {name!r}")


def decode_threads_per_rank(world_size: int) -> int:
    """The cores that this process may use, shared evenly with the other ranks of its machine."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)
