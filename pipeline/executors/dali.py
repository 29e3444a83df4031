"""DALI decodes the planned samples from the memory-mapped tars; on a GPU it also crops, resizes and flips.

DALI draws nothing and keeps no state of ours: encoded bytes and the plan's numbers go in, uint8 images come out. So the
result does not depend on threads or queue depth, and a new pipeline can continue anywhere.

On the CPU, DALI only decodes and `host_views` does the rest, in half the time of DALI's own operators. The GPU graph
is tested on the CPU; on an H200 its images were within 4 grey levels of the CPU's, 0.2 on average.
"""

import logging
from collections import deque
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

from pipeline.augmentation.augment import augment_views
from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.crop_resize import crop_resize_flip
from pipeline.executors.dali_border import brighten_border
from pipeline.executors.dali_graphs import (
    decode_graph,
    decode_inputs,
    decoder_arguments,
    reflects,
    trial_graph,
    view_graph,
    view_inputs,
)
from pipeline.executors.decode_settings import DecodeSettings
from pipeline.executors.executor import FinishedBatch
from pipeline.executors.host_views import HostViews
from pipeline.executors.readahead import ReadAhead
from pipeline.plan import StreamPlan
from pipeline.views.view import OneOf, View, ViewPlan
from shards.reader import ShardSet

logger = logging.getLogger(__name__)


class DaliExecutor:
    """One DALI pipeline for one stream."""

    def __init__(
        self,
        dataset: ShardSet,
        views: tuple[View | OneOf, ...],
        device: torch.device,
        settings: DecodeSettings,
        largest_batch: int,
        bad_samples: BadSamples,
        views_by_dali: bool | None = None,
    ) -> None:
        """
        Args:
            views_by_dali: whether DALI also makes the views; by default only on a GPU.

        Raises:
            ValueError: a view has reflected borders, and the images have different sizes.
        """
        if any(reflects(view) for view in views) and not _one_size(dataset):
            raise ValueError(
                f"{dataset.path}: a crop with reflected borders needs images of one size in the DALI executor; "
                "pad with zeros, or build the shards with images of one size"
            )
        self._dataset = dataset
        self._views = views
        self._device = device
        self._bad_samples = bad_samples
        self._options = {
            # A rank left with one sample pads it to two.
            "batch_size": max(largest_batch, 2),
            "num_threads": settings.threads,
            "device_id": _device_id(device),
            "prefetch_queue_depth": settings.prefetch_batches,
            "decoder": decoder_arguments(settings, on_cpu=device.type == "cpu"),
        }
        by_dali = device.type != "cpu" if views_by_dali is None else views_by_dali
        self._host_views = None if by_dali else HostViews(settings.threads)
        # Several views share one decode, and a reflected border may show pixels outside the region.
        self._decodes_regions = settings.regions and len(views) == 1 and not reflects(views[0])
        self._ahead: ReadAhead | None = None
        self._pipeline: Any = None
        self._upcoming: Iterator[StreamPlan] = iter(())
        self._in_flight: deque[StreamPlan] = deque()
        self._source_error: Exception | None = None

    def run(self, requests: Iterator[StreamPlan]) -> Generator[FinishedBatch]:
        """See `Executor.run`."""
        # Not in the generator: read-ahead starts now, not when the first batch is requested.
        self._upcoming = self._ahead = ReadAhead(requests, self._dataset, self._bad_samples)
        self._pipeline = self._build()
        return self._serve()

    def _serve(self) -> Generator[FinishedBatch]:
        while True:
            try:
                # This is the stream that will read the images; on the CPU there is none.
                outputs = self._pipeline.run(*self._cuda_stream())
            except StopIteration:
                if self._source_error is not None:
                    raise self._source_error from None
                return
            except RuntimeError as error:
                # A pipeline that has failed once is unreliable (DALI 2.4: documented as no longer valid, yet it keeps
                # running): build a new one and feed it everything the old one still held.
                self._set_aside_bad_samples(error)
                self._pipeline = self._build()
                continue
            request = self._in_flight.popleft()
            # DALI decodes ahead at the same time: torch's own threads would compete with it.
            pool = self._host_views.pool if self._host_views is not None else None
            yield request, augment_views(self._flipped(outputs, request), request.views, pool)

    def close(self) -> None:
        """Stop the threads; DALI's stop with its pipeline."""
        if self._ahead is not None:
            self._ahead.close()
        if self._host_views is not None:
            self._host_views.close()
        self._pipeline = None

    def _flipped(self, outputs: Any, request: StreamPlan) -> tuple[torch.Tensor, ...]:
        """The views up to the flip. On the CPU DALI only decodes; on a GPU this corrects differences from Pillow."""
        if self._host_views is None:
            return tuple(
                _as_pillow(to_torch_tensor(output.as_tensor(), copy=False), view, planned)
                for output, view, planned in zip(outputs, self._views, request.views, strict=True)
            )
        (decoded,) = outputs
        images = [np.asarray(decoded[i]) for i in range(len(request))]  # not copied
        return tuple(
            crop_resize_flip(torch.from_numpy(np.stack(images)), planned)
            if reflects(view)
            else self._host_views.make(images, planned, self._decodes_regions)
            for view, planned in zip(self._views, request.views, strict=True)
        )

    def _cuda_stream(self) -> tuple[Any, ...]:
        return () if self._device.type == "cpu" else (torch.cuda.current_stream(self._device),)

    def _build(self) -> Any:
        options = {"source": self._next_inputs, "regions": self._decodes_regions, **self._options}
        pipeline = view_graph(views=self._views, **options) if self._host_views is None else decode_graph(**options)
        pipeline.build()
        return pipeline

    def _next_inputs(self) -> list[Any]:
        """DALI's callback for the next batch; StopIteration lets it finish what it has."""
        try:
            request = next(self._upcoming)
        except StopIteration:
            raise
        except Exception as error:
            # Raised here, it would overtake the batches still being decoded and look like a DALI error.
            self._source_error = error
            raise StopIteration from None
        self._in_flight.append(request)
        if self._host_views is not None:
            return decode_inputs(self._dataset, request, self._decodes_regions)
        return view_inputs(self._dataset, request, self._views)

    def _set_aside_bad_samples(self, error: RuntimeError) -> None:
        """Find and replace undecodable samples in the batches in flight; if there are none, re-raise the error."""
        samples = sorted({int(sample) for request in self._in_flight for sample in request.sample_ids})
        bad = self._undecodable(samples)
        if not bad:
            raise error
        for sample in bad:
            self._bad_samples.add(
                sample, f"sample {sample} ({self._dataset.source_of(sample)}) cannot be decoded by DALI"
            )
        again = [self._bad_samples.replaced(request) for request in self._in_flight]
        self._in_flight.clear()
        self._upcoming = chain(again, self._upcoming)

    def _undecodable(self, samples: list[int]) -> list[int]:
        """Bisect to the bad samples: DALI's message names at most one, and only as text."""
        options = {**self._options, "batch_size": len(samples), "prefetch_queue_depth": 1}
        encoded = [self._dataset.encoded(sample) for sample in samples]
        try:
            trial_graph(encoded=encoded, **options).run()
        except RuntimeError:
            if len(samples) == 1:
                return samples
            half = len(samples) // 2
            return self._undecodable(samples[:half]) + self._undecodable(samples[half:])
        return []


def _as_pillow(images: torch.Tensor, view: View | OneOf, planned: ViewPlan) -> torch.Tensor:
    """Where DALI differs from Pillow: the border of a resize, and reflected borders (these images arrive uncropped)."""
    if reflects(view):
        return crop_resize_flip(images, planned)
    brighten_border(images, planned)
    return images


def _device_id(device: torch.device) -> int | None:
    """DALI's id for a device: None is the CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _one_size(dataset: ShardSet) -> bool:
    index = dataset.index
    return bool((index["width"] == index["width"][0]).all() and (index["height"] == index["height"][0]).all())
