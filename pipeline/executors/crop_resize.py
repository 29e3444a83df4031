"""Crop, resize, window and flip of decoded images on their device, as two small matrices per image.

All four steps of a view's geometry are linear and separable: an output row is a weighted sum of source rows, and
likewise for columns. So one pair of batched products does everything, for any mix of geometries in a batch, without a
loop over images and without waiting for the device. Intended for images up to about 64 pixels; the cost is cubic in
the size.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.transfer import values_to_device
from pipeline.views.view import PadMode, Resampling, ViewPlan


def crop_resize_flip(images: Tensor, plan: ViewPlan) -> Tensor:
    """Apply the geometry of `plan` to decoded images.

    images: uint8 (B, height, width, 3); returns uint8 (B, *plan.output_size, 3) on the same device.
    Exactly Pillow's pixels if nothing is resized; otherwise its antialiased bilinear or bicubic resize, except for
    rounding ties.
    """
    numbers = {name: getattr(plan, name).astype(np.float32) for name in ("region", "resized", "window")}
    region, resized, window, flip = values_to_device({**numbers, "flip": plan.flip}, images.device).values()
    rows, columns = (
        resampling_weights(
            region[:, axis],
            region[:, axis + 2],
            resized[:, axis],
            window[:, axis],
            images.shape[axis + 1],
            plan.output_size[axis],
            plan.pad_mode,
            plan.resampling,
        )
        for axis in (0, 1)
    )
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    pixels = images.permute(0, 3, 1, 2).float()
    # Columns first, rounded in between, as in Pillow.
    pixels = torch.einsum("bchw,bxw->bchx", pixels, columns).add_(0.5).floor_().clamp_(0, 255)
    pixels = torch.einsum("bchx,byh->byxc", pixels, rows).add_(0.5).floor_()
    return pixels.clamp_(0, 255).to(torch.uint8)


def resampling_weights(
    start: Tensor,
    length: Tensor,
    resized: Tensor,
    window: Tensor,
    source_size: int,
    output_size: int,
    pad: PadMode,
    resampling: Resampling = "bilinear",
) -> Tensor:
    """Weights float32 (B, output_size, source_size) of source pixels in output pixels, along one axis.

    Pixels `start` to `start + length` (float32 (B,) each) are resized to `resized` pixels; the output starts at pixel
    `window` of these. Pillow's filters: a triangle as wide as two pixels of the coarser grid, or the cubic with
    a = −1/2, as wide as four.
    """
    shown = window[:, None] + torch.arange(output_size, device=start.device)
    last = (resized - 1)[:, None]
    outside = (shown < 0) | (shown > last)
    if pad == "reflect":
        shown = last - (shown.abs() - last).abs()
    scale = (length / resized)[:, None]
    centre = start[:, None] + (shown + 0.5) * scale
    pixel = torch.arange(source_size, device=start.device) + 0.5
    distance = (pixel - centre[:, :, None]).abs() / scale.clamp(min=1)[:, :, None]
    # Pillow crops first: pixels outside the region do not contribute to the resize.
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])
    weights = (cubic(distance) if resampling == "bicubic" else (1 - distance).clamp(min=0)) * inside[:, None, :]
    weights = weights / weights.sum(dim=2, keepdim=True)
    if pad == "zero":
        weights = weights.masked_fill(outside[:, :, None], 0)
    return weights


def cubic(distance: Tensor) -> Tensor:
    """The cubic kernel with a = −1/2 (Keys, 1981), zero beyond two pixels."""
    x = distance.clamp(max=2)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far)
