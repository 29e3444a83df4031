"""Samples that are unusable at run time: found once, named, counted, replaced by a fixed rule, limited in number.

Shard sets are checked at build time, so a bad sample here means that a file changed afterwards, or that this decoder
rejects an image that the check accepted. A single one must not stop a run of days, nor go unnoticed.

The rule: a bad sample is replaced by the next usable sample of its class in id order, wrapping around at the end. The
crop is scaled to the size of the replacement. So labels, class frequencies, λ and all other images stay as planned, and
a resumed run that meets the same bad sample again uses the same replacement.
"""

import logging
import threading
from dataclasses import replace

import numpy as np

from pipeline.plan import StreamPlan
from pipeline.views.view import ViewPlan
from shards.files import OutsideError
from shards.reader import CorruptSampleError, ShardSet

logger = logging.getLogger(__name__)


class BadSamples:
    """The bad samples found so far in one data set; shared by its streams and their threads."""

    def __init__(self, dataset: ShardSet, budget: int) -> None:
        """`budget`: how many different bad samples may be replaced; one more raises an error."""
        self._dataset = dataset
        self._budget = budget
        self._reasons: dict[int, str] = {}
        # Bytes are compared with their checksum on first use in this process, which costs about 1.5 % of decoding them
        # on a CPU core; later uses cost nothing. One bit per sample: 12.5 MB for 10^8. If two threads mark samples in
        # the same byte at once, a mark may be lost, and that sample is checked again.
        self._checked = np.zeros(len(dataset) // 8 + 1, dtype=np.uint8)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def reasons(self) -> dict[int, str]:
        """Sample id → why it cannot be used."""
        return dict(self._reasons)

    def check(self, sample: int) -> bool:
        """Whether the sample is usable as far as known; compares its checksum on first use.

        Raises RuntimeError if the budget is exceeded.
        """
        byte, bit = divmod(sample, 8)
        if not self._checked[byte] & (1 << bit):
            try:
                self._dataset.check_sample(sample)
            except CorruptSampleError as error:
                self.add(sample, str(error))
            self._checked[byte] |= 1 << bit
        return sample not in self._reasons

    def add(self, sample: int, reason: str) -> None:
        """Record a bad sample. Raises OutsideError if there are more than the budget allows."""
        with self._lock:
            if sample in self._reasons:
                return
            self._reasons[sample] = reason
            found = len(self._reasons)
        if found > self._budget:
            raise OutsideError(
                f"{self._dataset.path}: {found} unusable samples, {self._budget} are tolerated; the last is "
                f"{reason}. Run tools.verify_shards on the folder, then restore it or build it again"
            )
        logger.warning(
            "bad sample %d of at most %d, replaced by another one of its class: %s", found, self._budget, reason
        )

    def replaced(self, request: StreamPlan) -> StreamPlan:
        """The request with every bad sample replaced; raises OutsideError if a class has no usable sample."""
        bad = [position for position, sample in enumerate(request.sample_ids.tolist()) if not self.check(sample)]
        if not bad:
            return request
        sample_ids = request.sample_ids.copy()
        for position in bad:
            sample_ids[position] = self._substitute(int(sample_ids[position]))
        views = tuple(self._rescaled(view, bad, request.sample_ids, sample_ids) for view in request.views)
        return replace(request, sample_ids=sample_ids, views=views)

    def _substitute(self, sample: int) -> int:
        label = int(self._dataset.index["label"][sample])
        first, end = self._dataset.class_starts[label : label + 2]
        members = self._dataset.sample_ids_by_class[first:end]
        position = int(np.searchsorted(members, sample))
        for offset in range(1, len(members)):
            candidate = int(members[(position + offset) % len(members)])
            if self.check(candidate):
                return candidate
        raise OutsideError(
            f"{self._dataset.path}: no sample of class {label} ({self._dataset.class_names[label]}) is usable; "
            f"sample {sample}: {self._reasons[sample]}"
        )

    def _rescaled(self, view: ViewPlan, positions: list[int], before: np.ndarray, after: np.ndarray) -> ViewPlan:
        region = view.region.copy()
        for position in positions:
            old, new = (self._dataset.index[int(ids[position])] for ids in (before, after))
            for axis, side in enumerate(("height", "width")):
                start, length = int(region[position, axis]), int(region[position, axis + 2])
                new_start = start * int(new[side]) // int(old[side])
                new_stop = (start + length) * int(new[side]) // int(old[side])
                region[position, axis] = min(new_start, int(new[side]) - 1)
                region[position, axis + 2] = max(new_stop - new_start, 1)
        return replace(view, region=region)
