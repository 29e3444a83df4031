"""Planned operations with Pillow, one image at a time: the reference for all other implementations."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pipeline.views.operations import Interpolation, Kind, PlannedOperation

RESAMPLING = {
    Interpolation.NEAREST: Image.Resampling.NEAREST,
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}


def pillow_operation(image: Image.Image, operation: PlannedOperation, i: int) -> Image.Image:
    """Apply the planned operation to image `i`."""
    kind = Kind(operation.kind[i])
    if kind == Kind.CUTOUT:
        result = image.copy()
        top, left, bottom, right = (int(side) for side in operation.arguments[i])
        result.paste((0, 0, 0), (left, top, right, bottom))
        return result
    first, second = (float(value) for value in operation.arguments[i, :2])
    if kind in SIMPLE:
        return SIMPLE[kind](image, first)
    resample = RESAMPLING[Interpolation(int(second))]
    if kind == Kind.ROTATE:
        return image.rotate(first, resample, fillcolor=operation.fill)
    matrix = {
        Kind.SHEAR_X: (1, first, 0, 0, 1, 0),
        Kind.SHEAR_Y: (1, 0, 0, first, 1, 0),
        Kind.TRANSLATE_X: (1, 0, first, 0, 1, 0),
        Kind.TRANSLATE_Y: (1, 0, 0, 0, 1, first),
    }[kind]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=operation.fill)


def _hue(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.int64(shift * 255).astype(np.uint8)  # wraps at 256
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def _grey(image: Image.Image, _: float) -> Image.Image:
    return image.convert("L").convert("RGB")


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    # Not ImageOps.posterize: newer versions refuse the 0 bits of a low RandAugment magnitude.
    return image.point([value & ~(255 >> int(bits)) for value in range(256)] * 3)


def _solarize_add(image: Image.Image, addition: float) -> Image.Image:
    return image.point([min(255, value + int(addition)) if value < 128 else value for value in range(256)] * 3)


SIMPLE: dict[Kind, Callable[[Image.Image, float], Image.Image]] = {
    Kind.IDENTITY: lambda image, _: image,
    Kind.BRIGHTNESS: lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    Kind.CONTRAST: lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    Kind.COLOR: lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    Kind.SHARPNESS: lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    Kind.HUE: _hue,
    Kind.GREY: _grey,
    Kind.BLUR: lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)),
    Kind.INVERT: lambda image, _: ImageOps.invert(image),
    Kind.POSTERIZE: _posterize,
    Kind.SOLARIZE: lambda image, threshold: ImageOps.solarize(image, threshold),  # type: ignore[arg-type]
    Kind.SOLARIZE_ADD: _solarize_add,
    Kind.AUTO_CONTRAST: lambda image, _: ImageOps.autocontrast(image),
    Kind.EQUALIZE: lambda image, _: ImageOps.equalize(image),
}
