"""The graphs that DALI runs, and their inputs: encoded bytes and the numbers of the plan."""

from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from pipeline.executors.dali_border import margins
from pipeline.executors.decode_settings import DecodeSettings
from pipeline.plan import StreamPlan
from pipeline.views.view import AnnealedSquareCrop, OneOf, RandomResizedCrop, ResizeCenterCrop, View, ViewPlan, Whole
from shards.reader import ShardSet

# The graph inputs that carry a view's plan: element type and dimensions per sample.
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


def decode_inputs(dataset: ShardSet, request: StreamPlan, regions: bool) -> list[Any]:
    """The inputs of `decode_graph` for a request."""
    inputs: list[Any] = [_encoded(dataset, request)]
    if regions:
        region = request.views[0].region
        inputs += [np.ascontiguousarray(region[:, :2]), np.ascontiguousarray(region[:, 2:])]
    return inputs


def decoder_arguments(settings: DecodeSettings, on_cpu: bool) -> dict[str, Any]:
    """The arguments of all our decoders."""
    # No EXIF rotation, as in Pillow and torchvision: the index has the sizes of the unrotated images.
    arguments = {"adjust_orientation": False, "output_type": types.RGB}
    if on_cpu:
        return arguments
    width, height = settings.size_hint
    return arguments | {
        "device": "mixed",
        "jpeg_fancy_upsampling": True,  # as on the CPU: otherwise CPU and GPU runs differ
        "affine": False,  # pinned threads would share cores when several ranks run on one machine
        "hw_decoder_load": settings.hardware_share,
        "preallocate_width_hint": width,
        "preallocate_height_hint": height,
    }


@pipeline_def
def decode_graph(source: Any, regions: bool, decoder: dict[str, Any]) -> Any:
    """On the CPU: encoded bytes in, uint8 HWC out; with `regions` only the planned region of each image.

    decoder: from `decoder_arguments`, here and in the other graphs.
    """
    if not regions:
        return fn.decoders.image(_external_source(source, [])[0], **decoder)
    encoded, start, shape = _external_source(source, ["start", "shape"])
    return fn.decoders.image_slice(encoded, start=start, shape=shape, axes=[0, 1], **decoder)


def view_inputs(dataset: ShardSet, request: StreamPlan, views: tuple[View | OneOf, ...]) -> list[Any]:
    """The inputs of `view_graph` for a request: the encoded images, and the numbers of each view."""
    inputs: list[Any] = [_encoded(dataset, request)]
    for view, planned in zip(views, request.views, strict=True):
        values = _input_values(planned)
        inputs += [values[name] for name in _input_names(view)]
    return inputs


def _input_names(view: View | OneOf) -> list[str]:
    """The graph's inputs for a view; DALI warns about unused inputs."""
    if reflects(view):
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
def view_graph(source: Any, views: tuple[View | OneOf, ...], regions: bool, decoder: dict[str, Any]) -> tuple[Any, ...]:
    """Encoded bytes and the plans of `views` in; per view uint8 HWC out, uncropped if the view reflects.

    regions: decode only the planned region; for a single view that does not reflect.
    """
    names = [name for view in views for name in _input_names(view)]
    encoded, *numbers = _external_source(source, names)
    remaining = iter(numbers)
    per_view = [{name: next(remaining) for name in _input_names(view)} for view in views]
    decoded = None if regions else fn.decoders.image(encoded, **decoder)
    outputs = []
    for view, planned in zip(views, per_view, strict=True):
        if reflects(view):
            outputs.append(decoded)
            continue
        region = {"start": planned["start"], "shape": planned["shape"], "axes": [0, 1]}
        image = fn.decoders.image_slice(encoded, **region, **decoder) if regions else fn.slice(decoded, **region)
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
            interp_type=types.INTERP_CUBIC if view.resampling == "bicubic" else types.INTERP_LINEAR,
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
def trial_graph(encoded: list[np.ndarray], decoder: dict[str, Any]) -> Any:
    """Decodes one batch, to test whether it can be decoded."""
    return fn.decoders.image(fn.external_source(source=iter([encoded]), dtype=types.UINT8, ndim=1), **decoder)


def _branches(view: View | OneOf) -> tuple[View, ...]:
    return view.views if isinstance(view, OneOf) else (view,)


def reflects(view: View | OneOf) -> bool:
    """Whether a view has reflected borders, which DALI does not support."""
    return any(branch.pad_mode == "reflect" for branch in _branches(view))


def _has_window(view: View | OneOf) -> bool:
    """Whether the output is a part of the resized image; copying all of it costs 2 % of the decoding time."""
    return any(
        not isinstance(branch.geometry, RandomResizedCrop | AnnealedSquareCrop | Whole) for branch in _branches(view)
    )


def _shows_border(view: View | OneOf) -> bool:
    """Whether the output may include the outermost lines of a resize; the margin costs a fifth of a view.

    A bicubic view gets no margin, because its cubic weights there have mixed signs: it keeps DALI's border.
    """
    if view.resampling == "bicubic":
        return False
    return any(
        isinstance(branch.geometry, RandomResizedCrop | AnnealedSquareCrop | Whole)
        or (isinstance(branch.geometry, ResizeCenterCrop) and branch.geometry.resize < branch.geometry.size + 2)
        for branch in _branches(view)
    )


def _external_source(source: Any, names: list[str]) -> Any:
    """The encoded images, then inputs by name."""
    return fn.external_source(
        source=source,
        num_outputs=1 + len(names),
        dtype=[types.UINT8, *(_INPUTS[name][0] for name in names)],
        ndim=[1, *(_INPUTS[name][1] for name in names)],
        batch=True,
        no_copy=True,
    )


def _encoded(dataset: ShardSet, request: StreamPlan) -> list[np.ndarray]:
    """Views into the mapped tars: nothing is copied until the decoder reads it."""
    return [dataset.encoded(sample) for sample in request.sample_ids.tolist()]
