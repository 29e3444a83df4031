"""Running an executor on planned views, for the tests of single executors."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.dali import DaliExecutor
from pipeline.executors.decode_settings import decode_settings
from pipeline.executors.executor import Executor
from pipeline.executors.factory import make_executor
from pipeline.plan import StreamPlan
from pipeline.rng import generator
from pipeline.views.view import plan_view


def plan_batches(dataset: Any, views: Any, batches: Any, seed: int = 0) -> list[StreamPlan]:
    """A StreamPlan for each list of sample ids."""
    planned = []
    for step, ids in enumerate(batches):
        records = dataset.index[np.array(ids)]
        drawn = tuple(
            plan_view(
                view,
                records["width"],
                records["height"],
                lambda purpose, shape, number=number, step=step: generator(seed, f"{number}/{purpose}", 0, step).random(
                    shape
                ),
            )
            for number, view in enumerate(views)
        )
        labels, weights = records["label"].astype(np.int64), np.ones(len(ids), np.float32)
        planned.append(StreamPlan(np.arange(len(ids)), weights, np.array(ids), labels, drawn))
    return planned


def execute(name: str, dataset: Any, views: Any, requests: Any, threads: int = 1) -> Any:
    """For each request, one uint8 array (B, height, width, 3) a view.

    "dali-views" is the graph that GPUs run, "dali-view-regions" the same where the decoder cuts out the region.
    """
    largest = max(len(request) for request in requests)
    cpu, bad_samples = torch.device("cpu"), BadSamples(dataset, budget=0)
    running: Executor
    if name in ("dali-views", "dali-view-regions"):
        settings = replace(decode_settings(cpu, threads), regions=name == "dali-view-regions")
        running = DaliExecutor(dataset, views, cpu, settings, largest, bad_samples, views_by_dali=True)
    else:
        running = make_executor(name, dataset, views, cpu, threads, largest, bad_samples)
    results = running.run(iter(requests))
    try:
        return [[image.numpy().copy() for image in images] for _, images in results]
    finally:
        running.close()


def assert_same_pictures(found: Any, expected: Any, largest: int = 3, mean: float = 0.5) -> None:
    """Grey levels: no pixel further than `largest`, and `mean` on average over each image."""
    assert len(found) == len(expected) > 0
    for views, expected_views in zip(found, expected, strict=True):
        for one, other in zip(views, expected_views, strict=True):
            assert one.shape == other.shape
            difference = np.abs(one.astype(int) - other.astype(int))
            assert difference.max() <= largest
            assert difference.mean(axis=(1, 2, 3)).max() <= mean
