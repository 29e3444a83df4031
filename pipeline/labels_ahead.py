"""Labels of whole steps, available on request: a thread draws those of the next step during this one."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline.plan import GlobalBatch, Plan, Position

Labels = npt.NDArray[np.int64]


class LabelsAhead:
    """The global batches of steps, requested in order.

    If a stream's labels were requested once, they are assumed to be needed again. With 1,024 ranks they take longer to
    draw than this rank's own part of a plan; drawn in a separate thread they cost training nothing.
    """

    def __init__(self, plan: Plan, stop: Position) -> None:
        """stop: the step before which to stop."""
        self._plan, self._stop = plan, stop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="labels-ahead")
        self._wanted: set[str] = set()
        self._drawn: dict[str, Future[Labels]] = {}

    def global_batch(self, at: Position) -> GlobalBatch:
        """A step's batch, as from `Plan.global_batch`; starts drawing the labels of the next one."""
        drawn = self._drawn
        whole = self._plan.global_batch(at.epoch, at.step)

        def labels(stream: str) -> Labels:
            self._wanted.add(stream)
            future = drawn.get(stream)
            return whole.labels(stream) if future is None else future.result()

        self._drawn = self._begin(self._next(at))
        return replace(whole, labels=cache(labels))

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next(self, at: Position) -> Position:
        number = at.epoch * self._plan.steps_per_epoch + at.step + 1
        return Position(*divmod(number, self._plan.steps_per_epoch))

    def _begin(self, at: Position) -> dict[str, Future[Labels]]:
        if not self._wanted or at >= self._stop:
            return {}
        coming = self._plan.global_batch(at.epoch, at.step)
        return {
            stream: self._thread.submit(coming.labels, stream)
            for stream in sorted(self._wanted)
            if stream in coming.sizes
        }
