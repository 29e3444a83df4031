"""Runs planned operations on a batch: colour, grey, blur, policies and cutout; one code for CPU and GPU.

Pillow is the reference (reference.py): values are clipped and rounded to whole numbers after every operation.
Which images an operation touches is known on the host, so nothing here waits for the device.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline import color_kernels, spatial_kernels
from pipeline.operations import GEOMETRIC, Kind, PlannedOperation
from pipeline.transfer import to_device

Kernel = Callable[[Tensor, PlannedOperation], Tensor]

KERNELS: tuple[tuple[tuple[Kind, ...], Kernel], ...] = (
    ((Kind.BRIGHTNESS, Kind.CONTRAST, Kind.COLOR), color_kernels.enhance),
    ((Kind.HUE,), color_kernels.hue),
    ((Kind.GREY,), color_kernels.grey),
    ((Kind.INVERT,), color_kernels.invert),
    ((Kind.POSTERIZE,), color_kernels.posterize),
    ((Kind.SOLARIZE,), color_kernels.solarize),
    ((Kind.SOLARIZE_ADD,), color_kernels.solarize_add),
    ((Kind.AUTO_CONTRAST,), color_kernels.auto_contrast),
    ((Kind.EQUALIZE,), color_kernels.equalize),
    ((Kind.SHARPNESS,), spatial_kernels.sharpen),
    ((Kind.BLUR,), spatial_kernels.blur),
    (GEOMETRIC, spatial_kernels.transform),
    ((Kind.CUTOUT,), spatial_kernels.cutout),
)

# For each kind, its row in KERNELS; -1 for IDENTITY.
KERNEL_OF_KIND = np.array([next((row for row, (kinds, _) in enumerate(KERNELS) if kind in kinds), -1) for kind in Kind])

# On the CPU a few images at a time: enough to hide the cost of a call, few enough to keep their planes in the cache.
CPU_CHUNK_PIXELS = 8 * 224 * 224


def augment(images: Tensor, operations: tuple[PlannedOperation, ...]) -> Tensor:
    """Runs the operations in order on each image.

    images: uint8 (B, H, W, 3), left unchanged. Returns the same shape and type on the same device.
    Raises ValueError where images and operations do not fit together.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, expected uint8 (batch, height, width, 3)")
    for operation in operations:
        if len(operation) != len(images):
            raise ValueError(f"an operation is planned for {len(operation)} images, the batch has {len(images)}")
    operations = tuple(operation for operation in operations if operation.kind.any())
    if not operations:
        return images
    result = torch.empty_like(images)
    is_cpu = images.device.type == "cpu"
    size = max(1, CPU_CHUNK_PIXELS // (images.shape[1] * images.shape[2])) if is_cpu else len(images)
    # One buffer for all chunks: fresh ones would cost more in page faults than the copy itself.
    planes = images.new_empty((min(size, len(images)), 3, *images.shape[1:3]), dtype=torch.float32)
    for start in range(0, len(images), size):
        chunk = slice(start, min(start + size, len(images)))
        pixels = planes[: chunk.stop - start].copy_(images[chunk].permute(0, 3, 1, 2))
        for operation in operations:
            pixels = _apply(pixels, operation.take(chunk))
        # On the CPU torch vectorises float to int16, but neither float to uint8 nor a copy of another layout and type.
        # The low bytes (which come first on all machines that torch runs on) are the numbers.
        low_bytes = pixels.to(torch.int16).view(torch.uint8)[..., ::2]
        torch.stack(low_bytes.unbind(1), dim=3, out=result[chunk])
    return result


def _apply(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """One planned operation; each kernel sees only the images that it concerns."""
    kernel_of_image = KERNEL_OF_KIND[operation.kind]
    for row in set(kernel_of_image.tolist()) - {-1}:
        _, kernel = KERNELS[row]
        concerned = np.flatnonzero(kernel_of_image == row)
        if len(concerned) == len(pixels):
            return kernel(pixels, operation)
        index = to_device(torch.from_numpy(concerned), pixels.device)
        pixels.index_copy_(0, index, kernel(pixels.index_select(0, index), operation.take(concerned)))
    return pixels
