"""Pillow as an executor, up to the flip: the slow reference for the others."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from pipeline.augmentation.augment import augment_views
from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.executor import FinishedBatch
from pipeline.executors.pillow_reference import reference_view
from pipeline.executors.readahead import ReadAhead
from pipeline.plan import StreamPlan
from shards.reader import ShardSet

# All exceptions that Pillow raises on broken files.
DECODE_ERRORS = (OSError, ValueError, SyntaxError)


class ReferenceExecutor:
    """Decodes each image with Pillow, once per view, in a thread pool."""

    def __init__(self, dataset: ShardSet, device: torch.device, decode_threads: int, bad_samples: BadSamples) -> None:
        self._dataset = dataset
        self._device = device
        self._bad_samples = bad_samples
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="reference-decode")
        self._ahead: ReadAhead | None = None

    def run(self, requests: Iterator[StreamPlan]) -> Generator[FinishedBatch]:
        """See `Executor.run`."""
        self._ahead = ReadAhead(requests, self._dataset, self._bad_samples)
        return self._serve(self._ahead)

    def _serve(self, requests: Iterator[StreamPlan]) -> Generator[FinishedBatch]:
        for request in requests:
            images = self._decode(request)
            while images is None:
                request = self._bad_samples.replaced(request)
                images = self._decode(request)
            yield request, augment_views(images, request.views)

    def close(self) -> None:
        """Stop the threads."""
        if self._ahead is not None:
            self._ahead.close()
        self._pool.shutdown()

    def _decode(self, request: StreamPlan) -> tuple[torch.Tensor, ...] | None:
        """All views of a request; None if a sample is bad, which is then recorded."""
        geometries = [replace(view, operations=()) for view in request.views]

        def pictures(position: int) -> list[np.ndarray]:
            sample = int(request.sample_ids[position])
            try:
                return [reference_view(self._dataset.encoded(sample), view, position) for view in geometries]
            except DECODE_ERRORS as error:
                source = self._dataset.source_of(sample)
                self._bad_samples.add(sample, f"sample {sample} ({source}) cannot be decoded: {error}")
                return []

        by_sample = list(self._pool.map(pictures, range(len(request))))
        if not all(by_sample):
            return None
        return tuple(torch.from_numpy(np.stack(view)).to(self._device) for view in zip(*by_sample, strict=True))
