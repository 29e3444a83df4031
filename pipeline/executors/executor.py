"""The interface of executors, which turn planned batches of one stream into finished images."""

from collections.abc import Generator, Iterator
from typing import Protocol

import torch

from pipeline.plan import StreamPlan

FinishedBatch = tuple[StreamPlan, tuple[torch.Tensor, ...]]
"""A request as served, and for each of its views uint8 (B, height, width, 3) on the executor's device."""


class Executor(Protocol):
    """Executes the plans of one stream, from encoded bytes to finished images."""

    def run(self, requests: Iterator[StreamPlan]) -> Generator[FinishedBatch]:
        """One finished batch per request, in order; a bad sample's entry has its replacement's id and image.

        `requests` is consumed ahead of the results, possibly in a thread. Called only once per executor.
        """

    def close(self) -> None:
        """Stop threads and free device memory; safe to call twice."""
