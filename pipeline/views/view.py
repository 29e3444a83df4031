"""Which part of an image a view uses, the operations on it, and how both are drawn.

A `View` is the description; `plan_view` draws it for a batch of image sizes. The result is plain integers
(rectangles in the source image, a size, a window, a flip) and planned operations, so every executor does the same.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from pipeline.views.operations import Draw, Operation, PlannedOperation, check_probability

PadMode = Literal["zero", "reflect"]
Resampling = Literal["bilinear", "bicubic"]
Curve = Literal["convex", "linear", "concave"]
Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]
CROP_ATTEMPTS = 10  # as in torchvision's RandomResizedCrop, before it falls back to a central crop


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random rectangle resized to a square as in torchvision: `scale` is its area share, `ratio` width/height."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if not (0 < self.scale[0] <= self.scale[1] and 0 < self.ratio[0] <= self.ratio[1] and self.size > 0):
            raise ValueError(f"{self}: expected size > 0, 0 < min <= max in scale and in ratio")


@dataclass(frozen=True)
class PaddedCrop:
    """A random square of the image after padding all sides, without resizing."""

    size: int
    padding: int
    mode: PadMode = "zero"

    def __post_init__(self) -> None:
        if self.size < 1 or self.padding < 0 or self.mode not in get_args(PadMode):
            raise ValueError(f"{self}: expected size > 0, padding >= 0, and one of {get_args(PadMode)}")


@dataclass(frozen=True)
class ResizeCenterCrop:
    """The short side resized to `resize`, then the central square."""

    resize: int
    size: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize:
            raise ValueError(f"{self}: expected 0 < size <= resize")


@dataclass(frozen=True)
class ResizeCornerCrop:
    """The short side resized to `resize`, then the square in a corner."""

    resize: int
    size: int
    corner: Corner

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize or self.corner not in get_args(Corner):
            raise ValueError(f"{self}: expected 0 < size <= resize, and one of {get_args(Corner)}")


@dataclass(frozen=True)
class AnnealedSquareCrop:
    """A random square of the image, resized; over the epochs its minimum area grows to the largest square.

    LIFT+'s "minimalist data augmentation" (MDA): the area share is uniform in [min(a, M), M], with M that of the
    largest square and a = minimum + (1 − minimum) · f(t), t from 0 in the first epoch to 1 in the last; f is
    1 − √(1 − t²) (convex), t (linear) or √(1 − (1 − t)²) (concave).
    """

    size: int
    minimum: float = 0.08
    curve: Curve = "convex"

    def __post_init__(self) -> None:
        if not (self.size > 0 and 0 < self.minimum <= 1 and self.curve in get_args(Curve)):
            raise ValueError(f"{self}: expected size > 0, 0 < minimum <= 1, and one of {get_args(Curve)}")

    def smallest_share(self, progress: float) -> float:
        """The value of a for an epoch; progress is t."""
        match self.curve:
            case "convex":
                risen = 1 - (1 - progress**2) ** 0.5
            case "linear":
                risen = progress
            case "concave":
                risen = (1 - (1 - progress) ** 2) ** 0.5
        return self.minimum + (1 - self.minimum) * risen


@dataclass(frozen=True)
class Whole:
    """The whole image resized to a square; an image of that size is left unchanged."""

    size: int


Geometry = RandomResizedCrop | PaddedCrop | ResizeCenterCrop | ResizeCornerCrop | AnnealedSquareCrop | Whole


@dataclass(frozen=True)
class View:
    """One image of a sample: geometry, horizontal flip, then the operations in order.

    `resampling` is the filter of the geometry's antialiased resize.

    Pipelines that flip last ("sim") are equivalent: a flip commutes with colour operations and blur.
    """

    geometry: Geometry
    flip_probability: float = 0.0
    operations: tuple[Operation, ...] = ()
    resampling: Resampling = "bilinear"

    def __post_init__(self) -> None:
        check_probability(self, self.flip_probability)

    @property
    def size(self) -> int:
        """Side of the square output in pixels."""
        return self.geometry.size

    @property
    def pad_mode(self) -> PadMode:
        """The padding outside the image."""
        return self.geometry.mode if isinstance(self.geometry, PaddedCrop) else "zero"


@dataclass(frozen=True)
class OneOf:
    """Two views of the same size; a fair coin per image picks one. It counts as one view, not two."""

    views: tuple[View, View]

    def __post_init__(self) -> None:
        first, second = self.views
        if first.size != second.size:
            raise ValueError(f"OneOf: the views have {first.size} and {second.size} pixels, expected the same size")
        modes = {view.pad_mode for view in self.views if isinstance(view.geometry, PaddedCrop)}
        if len(modes) > 1:
            raise ValueError("OneOf: one view pads with zeros and the other reflects; a plan has one padding")
        if first.resampling != second.resampling:
            raise ValueError("OneOf: the views resize with different filters; a plan has one filter")

    @property
    def size(self) -> int:
        """Side of the square output in pixels."""
        return self.views[0].size

    @property
    def resampling(self) -> Resampling:
        """The filter of both views' resize."""
        return self.views[0].resampling


@dataclass(frozen=True)
class ViewPlan:
    """One drawn view of B images: cut `region`, resize it to `resized`, cut `window`, flip, apply the operations.

    region: int32 (B, 4), top, left, height, width in the source image.
    resized: int32 (B, 2), height and width of the region after an antialiased resize with the filter `resampling`.
    window: int32 (B, 2), top and left of the output in the resized image; outside it `pad_mode` fills.
    flip: bool (B,), left-right. output_size: height and width of every output image.
    """

    region: np.ndarray
    resized: np.ndarray
    window: np.ndarray
    flip: np.ndarray
    output_size: tuple[int, int]
    pad_mode: PadMode
    operations: tuple[PlannedOperation, ...]
    resampling: Resampling = "bilinear"

    def __len__(self) -> int:
        return len(self.flip)

    def take(self, indices: np.ndarray | slice) -> "ViewPlan":
        """The plan for some of the images, in the order of `indices`."""
        return replace(
            self,
            region=self.region[indices],
            resized=self.resized[indices],
            window=self.window[indices],
            flip=self.flip[indices],
            operations=tuple(operation.take(indices) for operation in self.operations),
        )


def plan_view(
    view: View | OneOf, widths: np.ndarray, heights: np.ndarray, draw: Draw, progress: float = 1.0
) -> ViewPlan:
    """Draws a view for images of the given sizes (int (B,) each).

    `draw("crop", shape)` returns the numbers for the crop, `draw("flip", shape)` those for the flip, and so on, so a
    new operation does not change the draws of others. Row i of every draw belongs to image i, for any batch size.

    progress: from 0 in the first epoch of a run to 1 in its last; geometries that anneal depend on it.
    """
    # int64: areas and products of the index's uint16 sizes must not wrap.
    widths, heights = np.asarray(widths, np.int64), np.asarray(heights, np.int64)
    if isinstance(view, OneOf):
        return _plan_one_of(view, widths, heights, draw, progress)
    region, resized, window = _plan_geometry(view.geometry, widths, heights, draw, progress)
    flip = draw("flip", (len(widths),)) < view.flip_probability if view.flip_probability else None
    size = (view.size, view.size)
    return ViewPlan(
        region=region.astype(np.int32),
        resized=resized.astype(np.int32),
        window=window.astype(np.int32),
        flip=np.zeros(len(widths), bool) if flip is None else flip,
        output_size=size,
        pad_mode=view.pad_mode,
        operations=tuple(
            planned for operation in view.operations for planned in operation.plan(len(widths), size, draw)
        ),
        resampling=view.resampling,
    )


def _plan_one_of(view: OneOf, widths: np.ndarray, heights: np.ndarray, draw: Draw, progress: float) -> ViewPlan:
    """Draws both branches for all images, so a branch's draws do not depend on the coin."""
    first, second = (
        plan_view(
            branch,
            widths,
            heights,
            lambda purpose, shape, prefix=prefix: draw(f"{prefix}/{purpose}", shape),  # type: ignore[misc]
            progress,
        )
        for prefix, branch in zip("ab", view.views, strict=True)
    )
    is_first = draw("pipeline", (len(widths),)) < 0.5
    column = is_first[:, None]
    padded = next((branch for branch in view.views if isinstance(branch.geometry, PaddedCrop)), view.views[0])
    return ViewPlan(
        region=np.where(column, first.region, second.region),
        resized=np.where(column, first.resized, second.resized),
        window=np.where(column, first.window, second.window),
        flip=np.where(is_first, first.flip, second.flip),
        output_size=first.output_size,
        pad_mode=padded.pad_mode,
        operations=tuple(operation.only_where(is_first) for operation in first.operations)
        + tuple(operation.only_where(~is_first) for operation in second.operations),
        resampling=view.resampling,
    )


def _plan_geometry(
    geometry: Geometry, widths: np.ndarray, heights: np.ndarray, draw: Draw, progress: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Region (B, 4), resized (B, 2) and window (B, 2)."""
    count = len(widths)
    zeros = np.zeros(count, np.int64)
    whole = np.stack([zeros, zeros, heights, widths], axis=1)
    match geometry:
        case RandomResizedCrop():
            uniform = draw("crop", (count, 2 * CROP_ATTEMPTS + 2))
            region = random_resized_regions(widths, heights, geometry.scale, geometry.ratio, uniform)
            return region, np.full((count, 2), geometry.size), np.zeros((count, 2), np.int64)
        case Whole():
            return whole, np.full((count, 2), geometry.size), np.zeros((count, 2), np.int64)
        case PaddedCrop():
            room = whole[:, 2:] + 2 * geometry.padding - geometry.size
            if (room < 0).any():
                smallest = room.min(axis=1).argmin()
                raise ValueError(
                    f"{geometry}: an image has {widths[smallest]} x {heights[smallest]} pixels, expected at least "
                    f"{geometry.size - 2 * geometry.padding} per side; use a view that resizes"
                )
            offset = np.floor(draw("crop", (count, 2)) * (room + 1)).astype(np.int64)
            return whole, whole[:, 2:], offset - geometry.padding
        case ResizeCenterCrop():
            resized = short_side_sizes(widths, heights, geometry.resize)
            # torchvision's CenterCrop: Python's round, half to even.
            return whole, resized, np.rint((resized - geometry.size) / 2.0).astype(np.int64)
        case ResizeCornerCrop():
            resized = short_side_sizes(widths, heights, geometry.resize)
            far = np.array(["bottom" in geometry.corner, "right" in geometry.corner])
            return whole, resized, far * (resized - geometry.size)
        case AnnealedSquareCrop():
            region = annealed_regions(widths, heights, geometry.smallest_share(progress), draw("crop", (count, 3)))
            return region, np.full((count, 2), geometry.size), np.zeros((count, 2), np.int64)


def annealed_regions(widths: np.ndarray, heights: np.ndarray, smallest: float, uniform: np.ndarray) -> np.ndarray:
    """Squares (B, 4) top, left, height, width with area share uniform from `smallest` to that of the largest square.

    uniform: numbers in [0, 1), float64 (B, 3), for share, top and left.
    """
    area, short = widths * heights, np.minimum(widths, heights)
    largest = short**2 / area
    low = np.minimum(smallest, largest)
    side = np.rint(np.sqrt((low + (largest - low) * uniform[:, 0]) * area)).astype(np.int64).clip(1, short)
    room = np.stack([heights, widths], axis=1) - side[:, None]
    corner = np.floor(uniform[:, 1:] * (room + 1)).astype(np.int64)
    return np.stack([corner[:, 0], corner[:, 1], side, side], axis=1)


def short_side_sizes(widths: np.ndarray, heights: np.ndarray, short_side: int) -> np.ndarray:
    """Heights and widths (B, 2) with the shorter side at `short_side`; the other is truncated as in torchvision."""
    sizes = np.stack([heights, widths], axis=1)
    return short_side * sizes // sizes.min(axis=1, keepdims=True)


def random_resized_regions(
    widths: np.ndarray,
    heights: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    uniform: np.ndarray,
) -> np.ndarray:
    """Rectangles (B, 4) top, left, height, width by torchvision's RandomResizedCrop algorithm, all images at once.

    uniform: numbers in [0, 1), float64 (B, 2 * CROP_ATTEMPTS + 2): per image, for the area shares of all attempts,
    their log ratios, and the position.

    An image's area share is uniform in `scale`, its log ratio uniform; the first of ten attempts that fits is taken,
    otherwise the largest central rectangle within `ratio`.
    """
    share, tilt = uniform[:, :CROP_ATTEMPTS], uniform[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS]
    area = (widths * heights)[:, None] * (scale[0] + (scale[1] - scale[0]) * share)
    aspect = np.exp(np.log(ratio[0]) + np.log(ratio[1] / ratio[0]) * tilt)
    crop_widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    crop_heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (
        (crop_widths <= widths[:, None]) & (crop_heights <= heights[:, None]) & (crop_widths > 0) & (crop_heights > 0)
    )
    rows, first = np.arange(len(widths)), fits.argmax(axis=1)
    found = fits[rows, first]
    # No attempt fits only if the image itself is outside `ratio`, or by bad luck inside it: then the whole image.
    width = np.where(found, crop_widths[rows, first], np.minimum(widths, np.rint(heights * ratio[1]).astype(np.int64)))
    height = np.where(
        found, crop_heights[rows, first], np.minimum(heights, np.rint(widths / ratio[0]).astype(np.int64))
    )
    room = np.stack([heights - height, widths - width], axis=1)
    position = np.where(found[:, None], np.floor(uniform[:, -2:] * (room + 1)).astype(np.int64), room // 2)
    return np.stack([position[:, 0], position[:, 1], height, width], axis=1)
