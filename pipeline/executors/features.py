"""Features instead of images, for runs that train a classifier on a frozen network.

A table of a data set's features is registered once; every stream and evaluation of the data set then reads its rows in
the order of the plan, and nothing is decoded.
"""

from collections.abc import Generator, Iterator
from weakref import WeakKeyDictionary

import torch

from pipeline.executors.executor import FinishedBatch
from pipeline.plan import StreamPlan
from pipeline.transfer import to_device
from shards.reader import ShardSet

_tables: WeakKeyDictionary[ShardSet, torch.Tensor] = WeakKeyDictionary()


def serve_features(dataset: ShardSet, table: torch.Tensor) -> None:
    """From now on serve `table`'s rows, float16 (samples, width), instead of the data set's images.

    Raises:
        ValueError: the table does not have one row per sample of the data set.
    """
    if len(table) != len(dataset):
        raise ValueError(f"{dataset.path}: {len(table)} feature rows for {len(dataset)} samples")
    _tables[dataset] = table


def has_features(dataset: ShardSet) -> bool:
    """Whether `serve_features` was called for the data set."""
    return dataset in _tables


class FeatureExecutor:
    """Gathers rows of the table; a view's plan has no effect."""

    def __init__(self, dataset: ShardSet, device: torch.device) -> None:
        self._table = _tables[dataset] = _tables[dataset].to(device)

    def run(self, requests: Iterator[StreamPlan]) -> Generator[FinishedBatch]:
        """See `Executor.run`; the "images" are float16 (B, width)."""
        for request in requests:
            rows = self._table[to_device(torch.from_numpy(request.sample_ids), self._table.device)]
            yield request, (rows,) * len(request.views)

    def close(self) -> None:
        """Nothing to stop."""
