"""DALI decodes, crops, resizes and flips what the plan says, from the memory-mapped tars, on the CPU or the GPU.

DALI draws nothing and keeps no state of ours: encoded bytes and the plan's numbers go in, uint8 images come out. So the
result does not depend on threads or queue depth, and a new pipeline continues wherever it is told to.

The GPU graph is written from DALI's documentation and has not run on a GPU yet.
"""

import logging
from collections import deque
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

from pipeline.bad_samples import BadSamples
from pipeline.crop_resize import crop_resize_flip
from pipeline.dali_border import brighten_border, margins
from pipeline.plan import StreamPlan
from pipeline.readahead import ReadAhead
from pipeline.views import OneOf, RandomResizedCrop, ResizeCenterCrop, View, ViewPlan, Whole
from shards.reader import ShardSet

logger = logging.getLogger(__name__)

# Batches that are decoded ahead of the one in use; DALI's default. A longer queue only evens out uneven batches.
_PREFETCH = 2

# The inputs of the graph that carry a view's plan: element type and dimensions of a sample.
_INPUTS = {
    "start": (types.INT32, 1),
    "shape": (types.INT32, 1),
    "resized": (types.FLOAT, 1),
    "margin_start": (types.INT32, 1),
    "margin_shape": (types.INT32, 1),
    "roi_start": (types.FLOAT, 1),
    "roi_end": (types.FLOAT, 1),
    "window": (types.INT32, 1),
    "flip": (types.INT32, 0),
}


class DaliExecutor:
    """One DALI pipeline for one stream."""

    def __init__(
        self,
        dataset: ShardSet,
        views: tuple[View | OneOf, ...],
        device: torch.device,
        decode_threads: int,
        largest_batch: int,
        bad_samples: BadSamples,
    ) -> None:
        """Raises ValueError where DALI cannot make a view: reflected borders on images of different sizes."""
        if any(_reflects(view) for view in views) and not _one_size(dataset):
            raise ValueError(
                f"{dataset.path}: a crop with reflected borders needs images of one size in the DALI executor; "
                "pad with zeros, or build the shards with images of one size"
            )
        self._dataset = dataset
        self._views = views
        self._device = device
        self._bad_samples = bad_samples
        self._options = {
            # A rank that is left with one sample pads it to two.
            "batch_size": max(largest_batch, 2),
            "num_threads": decode_threads,
            "device_id": _device_id(device),
            "prefetch_queue_depth": _PREFETCH,
        }
        self._ahead: ReadAhead | None = None
        self._upcoming: Iterator[StreamPlan] = iter(())
        self._in_flight: deque[StreamPlan] = deque()
        self._source_error: Exception | None = None

    def run(self, requests: Iterator[StreamPlan]) -> Generator[tuple[torch.Tensor, ...]]:
        """See ``Executor.run``."""
        # Not in the generator: reading ahead begins now, not when the first batch is asked for.
        self._upcoming = self._ahead = ReadAhead(requests, self._dataset, self._bad_samples)
        return self._serve(self._build())

    def _serve(self, pipeline: Any) -> Generator[tuple[torch.Tensor, ...]]:
        while True:
            try:
                # The stream is the one that will read the images; on the CPU there is none.
                outputs = pipeline.run(*self._cuda_stream())
            except StopIteration:
                if self._source_error is not None:
                    raise self._source_error from None
                return
            except RuntimeError as error:
                # A pipeline that has failed once is not to be relied upon (DALI 2.4: documented as no longer valid,
                # yet it goes on): build another, and give it again what the old one still had.
                self._set_aside_bad_samples(error)
                pipeline = self._build()
                continue
            request = self._in_flight.popleft()
            yield tuple(
                _finish(to_torch_tensor(output.as_tensor(), copy=False), view, planned)
                for output, view, planned in zip(outputs, self._views, request.views, strict=True)
            )

    def close(self) -> None:
        """Stop the read-ahead thread; the pipeline goes with the generator that ``run`` returned."""
        if self._ahead is not None:
            self._ahead.close()

    def _cuda_stream(self) -> tuple[Any, ...]:
        return () if self._device.type == "cpu" else (torch.cuda.current_stream(self._device),)

    def _build(self) -> Any:
        pipeline = _view_graph(
            source=self._next_inputs, views=self._views, on_cpu=self._device.type == "cpu", **self._options
        )
        pipeline.build()
        return pipeline

    def _next_inputs(self) -> list[Any]:
        """DALI asks for the next batch; StopIteration lets it finish what it has."""
        try:
            request = next(self._upcoming)
        except StopIteration:
            raise
        except Exception as error:
            # Raised here, it would overtake the batches that are still being decoded, and look like an error of DALI's.
            self._source_error = error
            raise StopIteration from None
        self._in_flight.append(request)
        return graph_inputs(self._dataset, self._views, request)

    def _set_aside_bad_samples(self, error: RuntimeError) -> None:
        """Find and replace what cannot be decoded in the batches under way; the error stands if that is nothing."""
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
        """Halve until the culprits stand alone: DALI's message names one at most, and only in words."""
        options = {**self._options, "batch_size": len(samples), "prefetch_queue_depth": 1}
        encoded = [self._dataset.encoded(sample) for sample in samples]
        try:
            _decode_graph(encoded=encoded, on_cpu=self._device.type == "cpu", **options).run()
        except RuntimeError:
            if len(samples) == 1:
                return samples
            half = len(samples) // 2
            return self._undecodable(samples[:half]) + self._undecodable(samples[half:])
        return []


def graph_inputs(dataset: ShardSet, views: tuple[View | OneOf, ...], request: StreamPlan) -> list[Any]:
    """What the graph is fed for a request: the encoded images, and the numbers of each view."""
    # Views into the mapped tars: nothing is copied until the decoder reads it.
    inputs: list[Any] = [[dataset.encoded(sample) for sample in request.sample_ids.tolist()]]
    for view, planned in zip(views, request.views, strict=True):
        values = _input_values(planned)
        inputs += [values[name] for name in _input_names(view)]
    return inputs


def _input_names(view: View | OneOf) -> list[str]:
    """What the graph needs for a view; DALI warns of inputs that nothing uses."""
    if _reflects(view):
        return []
    unused = set() if _has_window(view) else {"window"}
    if not _shows_border(view):
        unused |= {"margin_start", "margin_shape", "roi_start", "roi_end"}
    return [name for name in _INPUTS if name not in unused]


def _input_values(planned: ViewPlan) -> dict[str, np.ndarray]:
    shape = np.ascontiguousarray(planned.region[:, 2:])
    margin = margins(planned)
    return {
        "start": np.ascontiguousarray(planned.region[:, :2]),
        "shape": shape,
        "resized": planned.resized.astype(np.float32),
        "margin_start": -margin,
        "margin_shape": shape + 2 * margin,
        "roi_start": margin.astype(np.float32),
        "roi_end": (margin + shape).astype(np.float32),
        "window": planned.window,
        "flip": planned.flip.astype(np.int32),
    }


@pipeline_def
def _view_graph(source: Any, views: tuple[View | OneOf, ...], on_cpu: bool) -> tuple[Any, ...]:
    """Encoded bytes and the plans of ``views`` in; per view uint8 HWC out."""
    names = [name for view in views for name in _input_names(view)]
    encoded, *numbers = fn.external_source(
        source=source,
        num_outputs=1 + len(names),
        dtype=[types.UINT8, *(_INPUTS[name][0] for name in names)],
        ndim=[1, *(_INPUTS[name][1] for name in names)],
        batch=True,
        no_copy=True,
    )
    remaining = iter(numbers)
    per_view = [{name: next(remaining) for name in _input_names(view)} for view in views]
    # On the CPU decoding only the region takes 0.86 of the time of decoding all. Several views share one decoding of
    # the whole image; and on the GPU the region decoder may pass by the hardware JPEG engine.
    by_region = on_cpu and len(views) == 1 and not _reflects(views[0])
    decoded = None if by_region else _decode(encoded, on_cpu)
    outputs = []
    for view, planned in zip(views, per_view, strict=True):
        if _reflects(view):
            outputs.append(decoded)
            continue
        if by_region:
            image = fn.decoders.image_slice(
                encoded,
                start=planned["start"],
                shape=planned["shape"],
                axes=[0, 1],
                adjust_orientation=False,
                output_type=types.RGB,
            )
        else:
            image = fn.slice(decoded, start=planned["start"], shape=planned["shape"], axes=[0, 1])
        region_of_interest = {}
        if _shows_border(view):
            image = fn.slice(
                image,
                start=planned["margin_start"],
                shape=planned["margin_shape"],
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=0,
            )
            region_of_interest = {name: planned[name] for name in ("roi_start", "roi_end")}
        image = fn.resize(
            image,
            size=planned["resized"],
            interp_type=types.INTERP_LINEAR,
            antialias=True,
            **region_of_interest,
        )
        if _has_window(view):
            image = fn.slice(
                image,
                start=planned["window"],
                shape=[view.size, view.size],
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=0,
            )
        outputs.append(fn.flip(image, horizontal=planned["flip"]))
    return tuple(outputs)


@pipeline_def
def _decode_graph(encoded: list[np.ndarray], on_cpu: bool) -> Any:
    """Decodes one batch; shows whether it can be decoded."""
    return _decode(fn.external_source(source=iter([encoded]), dtype=types.UINT8, ndim=1), on_cpu)


def _decode(encoded: Any, on_cpu: bool) -> Any:
    # No EXIF rotation, as Pillow and torchvision: the index has the sizes of the unrotated images.
    if on_cpu:
        return fn.decoders.image(encoded, adjust_orientation=False, output_type=types.RGB)
    return fn.decoders.image(
        encoded,
        device="mixed",
        adjust_orientation=False,
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,  # as on the CPU: otherwise runs on the two differ
        affine=False,  # pinned threads would meet on the same cores when ranks share a machine
    )


def _finish(images: torch.Tensor, view: View | OneOf, planned: ViewPlan) -> torch.Tensor:
    """What DALI does not do as Pillow: the border of a resize, and reflecting borders (such images leave it whole)."""
    if _reflects(view):
        return crop_resize_flip(images, planned)
    brighten_border(images, planned)
    return images


def _device_id(device: torch.device) -> int | None:
    """DALI's name of a device: None is the CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _branches(view: View | OneOf) -> tuple[View, ...]:
    return view.views if isinstance(view, OneOf) else (view,)


def _reflects(view: View | OneOf) -> bool:
    return any(branch.pad_mode == "reflect" for branch in _branches(view))


def _has_window(view: View | OneOf) -> bool:
    """Whether the output is a part of the resized image; copying all of it costs 2 % of decoding."""
    return any(not isinstance(branch.geometry, RandomResizedCrop | Whole) for branch in _branches(view))


def _shows_border(view: View | OneOf) -> bool:
    """Whether the output may show the outermost lines of a resize; the margin costs a fifth of a view on the CPU."""
    return any(
        isinstance(branch.geometry, RandomResizedCrop | Whole)
        or (isinstance(branch.geometry, ResizeCenterCrop) and branch.geometry.resize < branch.geometry.size + 2)
        for branch in _branches(view)
    )


def _one_size(dataset: ShardSet) -> bool:
    index = dataset.index
    return bool((index["width"] == index["width"][0]).all() and (index["height"] == index["height"][0]).all())
