"""When each sample of a data set is needed next; a local copy with a size limit uses this to decide what to keep."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.plan import Plan, Position, micro_parts

NOT_SOON = np.iinfo(np.uint32).max
# Samples of a stream to look ahead, because each costs about 50 ns per eviction: two epochs of most sets. Samples
# needed later are not distinguished.
_LOOKED_AHEAD = 2**22


class Upcoming:
    """The samples that a loader's machine needs in the rest of this epoch and the whole next one.

    now: the current training step; set by the loader.
    """

    def __init__(self, plan: Plan, now: Position, part: tuple[int, int], accumulation: int = 1) -> None:
        """part: (index, parts) of this machine among all: its ranks share the local copy, and each micro-batch."""
        self.now = now
        self._given = plan
        self._parts = micro_parts(*part, accumulation)

    def next_uses(self, dataset: str) -> npt.NDArray[np.uint32]:
        """uint32 (N,): in how many micro-batches each sample is read next; NOT_SOON if unknown.

        dataset: a key of the plan's data sets.
        """
        plan = self._plan
        found = np.full(len(plan.datasets[dataset]), NOT_SOON, np.uint32)
        for name, stream in plan.streams.items():
            for number, ids in self._requests(name) if stream.dataset == dataset else ():
                found[ids] = np.minimum(found[ids], np.uint32(number))
        return found

    def _requests(self, stream: str) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """The number of each micro-batch, counted from now, and this machine's sample ids in it."""
        plan, now = self._plan, self.now
        looked_at = 0
        for step, at in enumerate(plan.positions(now, Position(min(now.epoch + 2, plan.epochs), 0))):
            for micro, part in enumerate(self._parts) if plan.uses(stream, at.epoch, at.step) else ():
                ids = plan.sample_ids(stream, at.epoch, at.step, part)
                yield step * len(self._parts) + micro, ids
                looked_at += len(ids)
            if looked_at >= _LOOKED_AHEAD:
                return

    @cached_property
    def _plan(self) -> Plan:
        """A separate plan: the given one caches the order of the epoch that is being read."""
        return self._given.twin()
