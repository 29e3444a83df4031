"""Random image operations after the flip: their draws, as per-image instructions for an executor.

An `Operation` describes a random operation; `plan` draws it for a batch and returns one or more `PlannedOperation`.
A planned operation is one column of a small program: every image has its own `Kind` and arguments, or `IDENTITY`.
A colour jitter is three or four such columns with kinds permuted per image; RandAugment is two columns. So executors
(augment.py, reference.py) only know a flat list of kinds, not policies or probabilities.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

# Uniform numbers in [0, 1) for a purpose, such as "jitter"; the first axis of the shape is the images. The same purpose
# gives an image the same numbers.
Draw = Callable[[str, tuple[int, ...]], npt.NDArray[np.float64]]


class Kind(IntEnum):
    """An operation on one image, with its arguments in order. All on uint8, as in Pillow."""

    IDENTITY = 0
    BRIGHTNESS = 1  # factor
    CONTRAST = 2  # factor, around the mean grey of the image
    COLOR = 3  # factor (saturation)
    SHARPNESS = 4  # factor
    HUE = 5  # shift as a fraction of the circle, in [-0.5, 0.5]
    GREY = 6
    BLUR = 7  # radius = standard deviation in pixels
    INVERT = 8
    POSTERIZE = 9  # bits kept, 0 to 8
    SOLARIZE = 10  # threshold: values at or above are inverted
    SOLARIZE_ADD = 11  # amount added to values below 128
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    ROTATE = 14  # degrees counter-clockwise, Interpolation
    SHEAR_X = 15  # source x moves by this times y, Interpolation
    SHEAR_Y = 16
    TRANSLATE_X = 17  # pixels added to the source x, Interpolation
    TRANSLATE_Y = 18
    CUTOUT = 19  # top, left, bottom, right of the hole, half-open


class Interpolation(IntEnum):
    """How a geometric kind interpolates between pixels."""

    NEAREST = 0
    BILINEAR = 1
    BICUBIC = 2


GEOMETRIC = (Kind.ROTATE, Kind.SHEAR_X, Kind.SHEAR_Y, Kind.TRANSLATE_X, Kind.TRANSLATE_Y)


@dataclass(frozen=True)
class PlannedOperation:
    """One instruction for each of B images.

    kind: uint8 (B,), a `Kind`. arguments: float64 (B, 2), for cutouts (B, 4); 0 if the kind has none.
    fill: RGB value of pixels that a geometric kind or the cutout leaves uncovered.
    """

    kind: np.ndarray
    arguments: np.ndarray
    fill: tuple[int, int, int] = (0, 0, 0)

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, indices: np.ndarray | slice) -> "PlannedOperation":
        """The instructions for some of the images."""
        return replace(self, kind=self.kind[indices], arguments=self.arguments[indices])

    def only_where(self, mask: np.ndarray) -> "PlannedOperation":
        """The same instructions, with IDENTITY for images outside `mask` (bool (B,))."""
        return replace(self, kind=np.where(mask, self.kind, np.uint8(Kind.IDENTITY)))


class Operation(Protocol):
    """A random operation of a view."""

    def plan(self, count: int, size: tuple[int, int], draw: Draw) -> tuple[PlannedOperation, ...]:
        """Draws the operation for `count` images of `size` (height, width)."""
        ...


def single_argument(kind: np.ndarray, argument: np.ndarray) -> PlannedOperation:
    """A planned operation whose kinds take at most one argument."""
    return PlannedOperation(kind.astype(np.uint8), np.stack([argument, np.zeros(len(kind))], axis=1))


def check_probability(owner: object, probability: float) -> None:
    """Raises ValueError unless 0 <= probability <= 1."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"{type(owner).__name__}: probability is {probability}, expected a number from 0 to 1")


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue in an order drawn per image, as in torchvision's ColorJitter.

    The first three are drawn from [max(0, 1 - x), 1 + x], hue from [-hue, hue]; an amount of 0 omits that step.
    With probability 1 - `probability` an image is left unchanged.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        check_probability(self, self.probability)
        amounts = (self.brightness, self.contrast, self.saturation, self.hue)
        if min(amounts) < 0 or max(amounts) == 0 or self.hue > 0.5:
            raise ValueError(f"ColorJitter: amounts are {amounts}, expected >= 0, one above 0, and hue <= 0.5")

    def plan(self, count: int, size: tuple[int, int], draw: Draw) -> tuple[PlannedOperation, ...]:
        # Always nine numbers per image, so changing one amount does not change the other draws.
        uniform = draw("jitter", (count, 9))
        amounts = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        low = np.append(np.maximum(1.0 - amounts[:3], 0.0), -self.hue)
        high = np.append(1.0 + amounts[:3], self.hue)
        factors = low + (high - low) * uniform[:, :4]
        used = np.flatnonzero(amounts)
        order = used[np.argsort(uniform[:, 4:8][:, used], axis=1)]
        kinds = np.array([Kind.BRIGHTNESS, Kind.CONTRAST, Kind.COLOR, Kind.HUE], np.uint8)[order]
        kinds[uniform[:, 8] >= self.probability] = Kind.IDENTITY
        factors = np.take_along_axis(factors, order, axis=1)
        return tuple(single_argument(kinds[:, i], factors[:, i]) for i in range(len(used)))


@dataclass(frozen=True)
class Grayscale:
    """Three equal channels of luma, with a probability."""

    probability: float

    def __post_init__(self) -> None:
        check_probability(self, self.probability)

    def plan(self, count: int, size: tuple[int, int], draw: Draw) -> tuple[PlannedOperation, ...]:
        grey = draw("grey", (count,)) < self.probability
        return (single_argument(np.where(grey, Kind.GREY, Kind.IDENTITY), np.zeros(count)),)


@dataclass(frozen=True)
class GaussianBlur:
    """Pillow's Gaussian blur with a standard deviation uniform in [sigma_min, sigma_max] pixels, with a probability."""

    sigma_min: float = 0.1
    sigma_max: float = 2.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self, self.probability)
        if not 0.0 <= self.sigma_min <= self.sigma_max:
            raise ValueError(f"GaussianBlur: sigma is [{self.sigma_min}, {self.sigma_max}], expected 0 <= min <= max")

    def plan(self, count: int, size: tuple[int, int], draw: Draw) -> tuple[PlannedOperation, ...]:
        uniform = draw("blur", (count, 2))
        kind = np.where(uniform[:, 0] < self.probability, Kind.BLUR, Kind.IDENTITY)
        return (single_argument(kind, self.sigma_min + (self.sigma_max - self.sigma_min) * uniform[:, 1]),)


@dataclass(frozen=True)
class Rotation:
    """Rotation by an angle uniform in [-degrees, degrees], nearest pixel, black outside (official RIDE code, CIFAR)."""

    degrees: float

    def __post_init__(self) -> None:
        if not 0.0 < self.degrees <= 180.0:
            raise ValueError(f"Rotation: degrees is {self.degrees}, expected above 0 and at most 180")

    def plan(self, count: int, size: tuple[int, int], draw: Draw) -> tuple[PlannedOperation, ...]:
        angle = self.degrees * (2.0 * draw("rotation", (count,)) - 1.0)
        return (single_argument(np.full(count, Kind.ROTATE), angle),)


@dataclass(frozen=True)
class Cutout:
    """A black square hole with its centre uniform over the pixels, clipped at the border (DeVries and Taylor, 2017)."""

    side: int

    def __post_init__(self) -> None:
        if self.side < 2 or self.side % 2:
            raise ValueError(f"Cutout: side is {self.side}, expected an even number of pixels, at least 2")

    def plan(self, count: int, size: tuple[int, int], draw: Draw) -> tuple[PlannedOperation, ...]:
        extent = np.array(size)
        centre = np.floor(draw("cutout", (count, 2)) * extent).astype(np.int64)
        start = np.clip(centre - self.side // 2, 0, extent)
        stop = np.clip(centre + self.side // 2, 0, extent)
        corners = np.concatenate([start, stop], axis=1).astype(np.float64)
        return (PlannedOperation(np.full(count, Kind.CUTOUT, np.uint8), corners),)
