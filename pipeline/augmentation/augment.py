"""Runs planned operations on a batch: colour, grey, blur, policies and cutout.

Pillow is the reference (pillow_operations.py): values are clipped and rounded to whole numbers after every operation.
CPU and GPU share the same kernels; for large images on a CPU, Pillow itself runs the operations at which it is faster.
The host knows which images an operation affects, so nothing here waits for the device.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.augmentation import color_kernels, spatial_kernels
from pipeline.augmentation.pillow_operations import pillow_operation
from pipeline.transfer import to_device
from pipeline.views.operations import GEOMETRIC, Kind, PlannedOperation
from pipeline.views.view import ViewPlan

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

# The row in KERNELS for each kind; -1 for IDENTITY.
KERNEL_OF_KIND = np.array([next((row for row, (kinds, _) in enumerate(KERNELS) if kind in kinds), -1) for kind in Kind])

# On the CPU, a few images at a time: enough to hide the call overhead, few enough to keep their planes in the cache.
CHUNK_PIXELS = 8 * 224 * 224

# At or above this size, images with different operations go into separate chunks, without regrouping. For smaller
# images the operations cost less than the calls, so large chunks share them.
LARGE_IMAGE_PIXELS = 128 * 128

# Operations that Pillow does faster than torch on float planes, on a CPU at 224 pixels: moving, looking up or filtering
# bytes in one pass. Its colour blends are not faster, and their float planes already exist.
BY_PILLOW = np.isin(np.arange(len(Kind)), [*GEOMETRIC, Kind.SHARPNESS, Kind.EQUALIZE, Kind.SOLARIZE])


def augment_views(
    views: Sequence[Tensor], plans: Sequence[ViewPlan], pool: Executor | None = None
) -> tuple[Tensor, ...]:
    """Each view of a batch with its planned operations applied; see `augment`."""
    return tuple(augment(view, plan.operations, pool) for view, plan in zip(views, plans, strict=True))


def augment(images: Tensor, operations: tuple[PlannedOperation, ...], pool: Executor | None = None) -> Tensor:
    """Runs the operations in order on each image.

    images: uint8 (B, H, W, 3), left unchanged. Returns the same shape and type on the same device.
    pool: shares the work on the CPU (`threads.one_thread_each`); without it, torch's own threads do.
    Raises ValueError if images and operations do not match.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, expected uint8 (batch, height, width, 3)")
    for operation in operations:
        if len(operation) != len(images):
            raise ValueError(f"an operation is planned for {len(operation)} images, the batch has {len(images)}")
    operations = tuple(operation for operation in operations if operation.kind.any())
    if not operations:
        return images
    if images.device.type != "cpu":
        return _augment_together(images, operations)
    result = torch.empty_like(images)
    rows = result.numpy()

    def run(chunk: np.ndarray) -> None:
        part = images.index_select(0, torch.from_numpy(chunk))
        planned = tuple(operation.take(chunk) for operation in operations)
        # With numpy: torch's assignment to rows takes ten times as long.
        rows[chunk] = (_augment_alike if large else _augment_together)(part, planned).numpy()

    pixels = images.shape[1] * images.shape[2]
    large = pixels >= LARGE_IMAGE_PIXELS
    chunks = _chunks(np.stack([operation.kind for operation in operations]), pixels)
    for _ in (map if pool is None else pool.map)(run, chunks):
        pass
    return result


def _chunks(kinds: np.ndarray, pixels: int) -> list[np.ndarray]:
    """Indices of a batch's images, split into chunks.

    kinds: uint8 (operations, B). pixels: number of pixels per image.
    """
    order = np.lexsort(kinds)
    changes = (np.diff(kinds[:, order]) != 0).any(axis=0) & (pixels >= LARGE_IMAGE_PIXELS)
    alike = np.split(order, np.flatnonzero(changes) + 1)
    largest = max(1, CHUNK_PIXELS // pixels)
    return [group[start : start + largest] for group in alike for start in range(0, len(group), largest)]


def _augment_alike(images: Tensor, operations: tuple[PlannedOperation, ...]) -> Tensor:
    """Apply all operations to images with the same kinds, each with the faster implementation; returns new images."""
    for by_pillow, group in groupby(operations, key=lambda operation: bool(BY_PILLOW[operation.kind[0]])):
        run = _by_pillow if by_pillow else _augment_together
        images = run(images, tuple(group))
    return images


def _by_pillow(images: Tensor, operations: tuple[PlannedOperation, ...]) -> Tensor:
    result = torch.empty_like(images)
    for i, pixels in enumerate(images.numpy()):
        image = Image.fromarray(pixels)
        for operation in operations:
            image = pillow_operation(image, operation, i)
        result.numpy()[i] = image
    return result


def _augment_together(images: Tensor, operations: tuple[PlannedOperation, ...]) -> Tensor:
    """Apply all operations to all images at once; returns new images."""
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    for operation in operations:
        pixels = _apply(pixels, operation)
    # On the CPU torch vectorises float to int16 and int16 to uint8, but neither float to uint8 nor a copy of another
    # layout and type.
    return torch.stack(pixels.to(torch.int16).to(torch.uint8).unbind(1), dim=3)


def _apply(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Apply one planned operation; each kernel sees only the images that it affects."""
    kernel_of_image = KERNEL_OF_KIND[operation.kind]
    for row in set(kernel_of_image.tolist()) - {-1}:
        _, kernel = KERNELS[row]
        concerned = np.flatnonzero(kernel_of_image == row)
        if len(concerned) == len(pixels):
            return kernel(pixels, operation)
        index = to_device(torch.from_numpy(concerned), pixels.device)
        pixels.index_copy_(0, index, kernel(pixels.index_select(0, index), operation.take(concerned)))
    return pixels
