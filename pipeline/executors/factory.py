"""Choosing and creating the executor for a data set."""

import os
from typing import Literal

import torch

from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.decode_settings import decode_settings
from pipeline.executors.executor import Executor
from pipeline.views.view import OneOf, View
from shards.reader import ShardSet

ExecutorName = Literal["auto", "dali", "resident", "reference", "features"]


def choose_executor(name: ExecutorName, dataset: ShardSet) -> ExecutorName:
    """Resolve "auto": sets of small images of one size stay decoded on the device, DALI decodes all others.

    If features were registered for a data set, they are served regardless of the name.
    """
    from pipeline.executors.features import has_features

    if has_features(dataset):
        return "features"
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
    """An executor for one stream of `dataset`; raises ValueError if it cannot serve that data set or these views.

    Args:
        name: as returned by `choose_executor`.
        views: the views of the stream; they determine the shape of a decode graph.
        device: where the images are needed; DALI decodes on it.
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
    if name == "features":
        from pipeline.executors.features import FeatureExecutor

        return FeatureExecutor(dataset, device)
    if name == "reference":
        from pipeline.executors.reference import ReferenceExecutor

        return ReferenceExecutor(dataset, device, decode_threads, bad_samples)
    raise ValueError(f"executor: expected auto, dali, resident or reference, found {name!r}")


def decode_threads_per_rank(world_size: int) -> int:
    """The cores that this process may use, shared evenly with the other ranks on its machine."""
    return max(1, len(os.sched_getaffinity(0)) // ranks_here(world_size))


def ranks_here(world_size: int) -> int:
    """The number of ranks on this machine, as reported by the launcher; all of them if it reports none."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
