"""Features in the place of pictures: for a run that trains a classifier on a frozen network.

A table of a data set's features is registered once; from then on every stream and evaluation of the data set reads
rows of it, in the order of the plan, and nothing is decoded.
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
    """From now on, show `table`'s rows, float16 (samples, width), instead of the data set's pictures.

    Raises:
        ValueError: the table has another number of rows than the data set has samples.
    """
    if len(table) != len(dataset):
        raise ValueError(f"{dataset.path}: {len(table)} rows of features for {len(dataset)} samples")
    _tables[dataset] = table


def has_features(dataset: ShardSet) -> bool:
    """Whether `serve_features` was called for the data set."""
    return dataset in _tables


class FeatureExecutor:
    """Gathers rows of the table; a view's plan changes nothing."""

    def __init__(self, dataset: ShardSet, device: torch.device) -> None:
        self._table = _tables[dataset] = _tables[dataset].to(device)

    def run(self, requests: Iterator[StreamPlan]) -> Generator[FinishedBatch]:
        """See `Executor.run`; the "pictures" are float16 (B, width)."""
        for request in requests:
            rows = self._table[to_device(torch.from_numpy(request.sample_ids), self._table.device)]
            yield request, (rows,) * len(request.views)

    def close(self) -> None:
        """Nothing to stop."""
