"""Colour operations on a batch, with Pillow's arithmetic: pixel values stay whole numbers from 0 to 255 after each one.

Every kernel takes `pixels` float32 (n, 3, H, W) holding whole numbers, may change it in place, and returns the result.
Planar floats because torch's CPU kernels vectorise on them; an integer below 2^24 is exact in float32.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.augmentation.compiled import compiled_on_gpu, compiles_for
from pipeline.transfer import to_device
from pipeline.views.operations import Kind, PlannedOperation


def on_device(values: np.ndarray, like: Tensor) -> Tensor:
    """Numbers per image, (n,) or (n, k), as float32 (n, 1 or k, 1, 1) on the device of `like`."""
    columns = torch.from_numpy(np.ascontiguousarray(values, np.float32)).view(len(values), -1, 1, 1)
    return to_device(columns, like.device)


def luma(pixels: Tensor) -> Tensor:
    """Pillow's "L", (19595 R + 38470 G + 7471 B + 2^15) >> 16, shaped (n, 1, H, W); exact: 24 bits hold every sum."""
    red, green, blue = pixels.split(1, dim=1)
    weighted = red.mul(19595 / 65536).add_(green, alpha=38470 / 65536).add_(blue, alpha=7471 / 65536)
    return weighted.add_(0.5).floor_()


def blend(degenerate: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """Pillow's Image.blend: degenerate + factor * (pixels - degenerate), clipped and truncated. Changes `pixels`."""
    return pixels.sub_(degenerate).mul_(factor).add_(degenerate).clamp_(0, 255).floor_()


def grey(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Luma in all three channels."""
    return pixels.copy_(luma(pixels))


def enhance(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Brightness, contrast and saturation: blends with black, the mean grey, or the grey image.

    A batch whose images are at different steps of their jitter uses one formula for the three and is not regrouped; on
    a GPU every batch does, so only one function is compiled.
    """
    factor = on_device(operation.arguments[:, 0], pixels)
    kinds = np.unique(operation.kind)
    if len(kinds) == 1 and not compiles_for(pixels.device):
        return _ENHANCE_ALIKE[Kind(kinds[0])](pixels, factor)
    is_color = on_device(operation.kind == Kind.COLOR, pixels)
    is_contrast = on_device(operation.kind == Kind.CONTRAST, pixels)
    return _blend_with_grey(pixels, factor, is_color, is_contrast)


def _brighten(pixels: Tensor, factor: Tensor) -> Tensor:
    return pixels.mul_(factor).clamp_(0, 255).floor_()


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    return blend(_pivot(luma(pixels)), pixels, factor)


def _saturate(pixels: Tensor, factor: Tensor) -> Tensor:
    return blend(luma(pixels), pixels, factor)


_ENHANCE_ALIKE = {Kind.BRIGHTNESS: _brighten, Kind.CONTRAST: _contrast, Kind.COLOR: _saturate}


def _pivot(luminance: Tensor) -> Tensor:
    """int(mean + 0.5) per image, as in ImageEnhance.Contrast; the float32 sum is exact up to 256 x 256 pixels."""
    return luminance.mean(dim=(2, 3), keepdim=True).add_(0.5).floor_()


@compiled_on_gpu
def _blend_with_grey(pixels: Tensor, factor: Tensor, is_color: Tensor, is_contrast: Tensor) -> Tensor:
    luminance = luma(pixels)
    pivot = _pivot(luminance)
    degenerate = luminance.mul_(is_color).add_(pivot * is_contrast)
    return blend(degenerate, pixels, factor)


def hue(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Turns the hue in Pillow's 8-bit HSV, as torchvision does on Pillow images (truncated shift, wrapping at 256)."""
    return _turn_hue(pixels, on_device(np.trunc(operation.arguments[:, 0] * 255), pixels))


@compiled_on_gpu
def _turn_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    # Three dimensions: with four, (n, 1, H, W) counts as channels_last, and the compiler adds a pass from that layout.
    planes, shift = pixels.flatten(2), shift.flatten(2)
    red, green, _ = planes.split(1, dim=1)
    value = planes.amax(1, keepdim=True)
    chroma = value - planes.amin(1, keepdim=True)
    # Float and double are mixed as in Pillow's C code: quotients are about to be truncated, and rounding decides.
    saturation = ((chroma / value.clamp(min=1)).double() * 255).floor_().float()
    from_red, from_green, from_blue = ((value - planes) / chroma.clamp(min=1)).double().split(1, dim=1)
    sector = torch.where(
        red == value,
        from_blue - from_green,
        torch.where(green == value, 2 + from_red - from_blue, 4 + from_green - from_red),
    ).float()
    angle = ((sector.double() / 6 + 1).remainder_(1).float() * 255).floor_()
    angle = (angle + shift).remainder_(256)

    position = angle * 6 / 255
    sector = position.floor()
    fraction = position - sector
    strength = saturation / 255
    falling = (value * (1 - strength * fraction) + 0.5).floor_()
    rising = (value * (1 - strength * (1 - fraction)) + 0.5).floor_()
    low = (value * (1 - strength) + 0.5).floor_()
    # Each channel is a trapezoid over six sectors: top, falling, bottom, bottom, rising, top for red; green and blue
    # are the same, two and four sectors later. Without saturation every channel equals the value.
    channels = []
    for delay in (0, 2, 4):
        phase = (sector - delay).remainder_(6)
        slope = torch.where(phase == 1, falling, torch.where(phase == 4, rising, low))
        channels.append(torch.where((phase == 0) | (phase == 5), value, slope))
    return torch.cat(channels, dim=1).view_as(pixels)


def invert(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """255 - value."""
    return pixels.neg_().add_(255)


def posterize(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Keeps the highest bits."""
    step = on_device(2.0 ** (8 - operation.arguments[:, 0]), pixels)
    return pixels.div_(step).floor_().mul_(step)


def solarize(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Inverts values at or above the threshold."""
    return torch.where(pixels < on_device(operation.arguments[:, 0], pixels), pixels, 255 - pixels)


def solarize_add(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Adds to values below 128."""
    raised = (pixels + on_device(operation.arguments[:, 0], pixels)).clamp_(max=255)
    return torch.where(pixels < 128, raised, pixels)


def auto_contrast(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Stretches each channel to 0..255."""
    low = pixels.amin(dim=(2, 3), keepdim=True).double()
    high = pixels.amax(dim=(2, 3), keepdim=True).double()
    # Double precision and a true division as in Pillow (scalar / tensor would multiply by a reciprocal): otherwise some
    # exact values are truncated to the one below.
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1)
    levels = torch.arange(256, device=pixels.device, dtype=torch.float64)
    table = (levels * scale.squeeze(3) - (low * scale).squeeze(3)).clamp_(0, 255).floor_()
    return _look_up(torch.where((high > low).squeeze(3), table, levels), pixels)


def equalize(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Flattens the histogram of each channel by the rule of ImageOps.equalize."""
    values = pixels.flatten(2).long()
    histogram = torch.zeros((*values.shape[:2], 256), dtype=torch.int64, device=pixels.device)
    histogram.scatter_add_(2, values, torch.ones((), dtype=torch.int64, device=pixels.device).expand_as(values))
    levels = torch.arange(256, device=pixels.device)
    last = values.amax(dim=2, keepdim=True)
    step = (values.shape[2] - histogram.gather(2, last)) // 255
    before = histogram.cumsum(2) - histogram
    table = ((step // 2 + before) // step.clamp(min=1)).clamp_(max=255)
    return _look_up(torch.where(step > 0, table, levels), pixels)


def _look_up(table: Tensor, pixels: Tensor) -> Tensor:
    """Applies lookup tables (n, 3, 256), one per channel of each image."""
    return table.to(pixels.dtype).gather(2, pixels.flatten(2).long()).view_as(pixels)
