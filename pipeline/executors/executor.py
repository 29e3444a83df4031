"""What executors have in common: they turn planned batches of one stream into finished pictures."""

from collections.abc import Generator, Iterator
from typing import Protocol

import torch

from pipeline.plan import StreamPlan

FinishedBatch = tuple[StreamPlan, tuple[torch.Tensor, ...]]
"""A request as it was served, and for each of its views uint8 (B, height, width, 3) on the executor's device."""


class Executor(Protocol):
    """Executes the plans of one stream, from encoded bytes to pictures that want no further operation."""

    def run(self, requests: Iterator[StreamPlan]) -> Generator[FinishedBatch]:
        """One finished batch per request, in order; a bad sample's place holds the id and picture of its replacement.

        `requests` is consumed ahead of what is yielded, possibly in a thread. Called once in an executor's life.
        """

    def close(self) -> None:
        """Stop threads and free what the device holds; safe to call twice."""
