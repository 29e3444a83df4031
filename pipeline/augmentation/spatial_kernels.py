"""Operations that read neighbouring pixels or move pixels, on a batch, with Pillow's arithmetic.

Every kernel takes `pixels` float32 (n, 3, H, W) holding whole numbers, may change it in place, and returns the result.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.augmentation.color_kernels import blend, on_device
from pipeline.augmentation.compiled import compiled_on_gpu
from pipeline.transfer import to_device
from pipeline.views.operations import Interpolation, Kind, PlannedOperation

MOVES_X, MOVES_Y = 1, 2
MOVED_AXES = np.zeros(len(Kind), np.int64)
MOVED_AXES[[Kind.SHEAR_X, Kind.TRANSLATE_X]] = MOVES_X
MOVED_AXES[[Kind.SHEAR_Y, Kind.TRANSLATE_Y]] = MOVES_Y
MOVED_AXES[Kind.ROTATE] = MOVES_X | MOVES_Y

BLUR_PASSES = 3  # Pillow approximates a Gaussian by three extended box filters in each direction


def blur(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Pillow's GaussianBlur: extended box filters (Gwosdek et al., 2011), along rows first, rounded after each pass."""
    radius = box_radius(operation.arguments[:, 0])
    inner = np.floor(radius)
    weight = 1.0 / (2 * radius + 1)
    edge_weight = (1.0 - (2 * inner + 1) * weight) / 2
    distances = np.arange(int(inner.max()) + 2)
    inner, weight, edge_weight = inner[:, None], weight[:, None], edge_weight[:, None]
    taps = np.where(distances <= inner, weight, np.where(distances == inner + 1, edge_weight, 0.0))
    return _filter_both_ways(pixels, on_device(taps, pixels))


def box_radius(sigma: np.ndarray) -> np.ndarray:
    """Radius of the extended box that, applied three times, has variance sigma^2, by Pillow's formula."""
    variance = sigma**2 / BLUR_PASSES
    inner = np.floor((np.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    fraction = (2 * inner + 1) * (inner * (inner + 1) - 3.0 * variance) / (6.0 * (variance - (inner + 1) ** 2))
    return inner + fraction


@compiled_on_gpu
def _filter_both_ways(pixels: Tensor, weights: Tensor) -> Tensor:
    """BLUR_PASSES symmetric filters along rows, then columns; weights (n, reach + 1, 1, 1), the centre's first."""
    reach = weights.shape[1] - 1
    for dim, padding in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        for _ in range(BLUR_PASSES):
            pixels = _symmetric_filter(functional.pad(pixels, padding, mode="replicate"), weights, dim)
    return pixels


def _symmetric_filter(padded: Tensor, weights: Tensor, dim: int) -> Tensor:
    """sum over d of weights[d] * (x[i - d] + x[i + d]), rounded; `padded` has the neighbours at both ends of `dim`."""
    centre, *others = weights.split(1, dim=1)
    reach = len(others)
    length = padded.shape[dim] - 2 * reach
    total = padded.narrow(dim, reach, length) * centre
    for distance, weight in enumerate(others, 1):
        pair = padded.narrow(dim, reach - distance, length) + padded.narrow(dim, reach + distance, length)
        # Not addcmul_, which rounds once on some CPUs and twice on others.
        total.add_(pair.mul_(weight))
    return total.add_(0.5).floor_()


def sharpen(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Blends with a smoothed image: 3 x 3 mean with centre weight 5, borders as they are (ImageEnhance.Sharpness)."""
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = box.add_(pixels[:, :, 1:-1, 1:-1], alpha=4).div_(13).add_(0.5).floor_()
    return blend(smooth, pixels, on_device(operation.arguments[:, 0], pixels))


def cutout(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Blackens a rectangle of each image."""
    top, left, bottom, right = (on_device(side, pixels) for side in operation.arguments.T)
    rows = torch.arange(pixels.shape[2], device=pixels.device).view(-1, 1)
    columns = torch.arange(pixels.shape[3], device=pixels.device)
    return pixels.masked_fill_((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right), 0.0)


def affine_matrices(operation: PlannedOperation, height: int, width: int) -> np.ndarray:
    """Pillow's affine coefficients, float64 (n, 2, 3): output pixel (x, y, 1) to source pixel."""
    matrices = np.tile(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (len(operation), 1, 1))
    amount = operation.arguments[:, 0]
    for kind, row, column in (
        (Kind.SHEAR_X, 0, 1),
        (Kind.TRANSLATE_X, 0, 2),
        (Kind.SHEAR_Y, 1, 0),
        (Kind.TRANSLATE_Y, 1, 2),
    ):
        matrices[operation.kind == kind, row, column] = amount[operation.kind == kind]
    rotated = operation.kind == Kind.ROTATE
    angle = np.deg2rad(-amount[rotated])
    turn = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    centre = np.array([width / 2.0, height / 2.0])
    matrices[rotated] = np.concatenate([turn, (centre - turn @ centre)[:, :, None]], axis=2)
    return matrices


def transform(pixels: Tensor, operation: PlannedOperation) -> Tensor:
    """Rotation, shear and translation: each output pixel reads the source where the matrix maps its centre."""
    matrices = affine_matrices(operation, *pixels.shape[2:])
    # Grouped by method and by the axes along which pixels move: a fixed axis needs no interpolation.
    methods = operation.arguments[:, 1].astype(np.int64)
    moves = MOVED_AXES[operation.kind]
    result = torch.empty_like(pixels)
    for group in np.unique(methods * 4 + moves):
        rows = np.flatnonzero(methods * 4 + moves == group)
        index = to_device(torch.from_numpy(rows), pixels.device)
        method, moved = divmod(int(group), 4)
        sampled = _sample(pixels.index_select(0, index), matrices[rows], Interpolation(method), moved, operation.fill)
        result.index_copy_(0, index, sampled)
    return result


def _sample(
    pixels: Tensor, matrices: np.ndarray, method: Interpolation, moved: int, fill: tuple[int, int, int]
) -> Tensor:
    """Reads `pixels` at the mapped centres, or the fill colour where these are outside."""
    height, width = pixels.shape[2:]
    planes = pixels.flatten(2)
    if method == Interpolation.NEAREST:
        # Pillow's 16.16 fixed point: in floats, centres that map between two pixels could fall on the other side.
        source_x, source_y = (part >> 16 for part in _source_coordinates(matrices, pixels, fixed_point=True))
        sampled = _pick(planes, source_x, source_y, height, width)
    else:
        source_x, source_y = _source_coordinates(matrices, pixels, fixed_point=False)
        sampled = torch.zeros_like(pixels)
        for y, weight_y in _taps(source_y - 0.5, method if moved & MOVES_Y else Interpolation.NEAREST):
            row = torch.zeros_like(pixels)
            for x, weight_x in _taps(source_x - 0.5, method if moved & MOVES_X else Interpolation.NEAREST):
                row.addcmul_(_pick(planes, x, y, height, width), weight_x)
            sampled.addcmul_(row, weight_y)
        sampled.clamp_(0, 255).floor_()
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    colour = to_device(torch.tensor(fill, dtype=pixels.dtype).view(3, 1, 1), pixels.device)
    return torch.where(inside, sampled, colour)


def _source_coordinates(matrices: np.ndarray, pixels: Tensor, fixed_point: bool) -> list[Tensor]:
    """Source x and source y of every output pixel, (n, 1, H, W) each: float32, or int32 in units of 1/65536."""
    height, width = pixels.shape[2:]
    steps = matrices.copy()
    steps[:, :, 2] += steps[:, :, :2].sum(axis=2) / 2  # the centre of output pixel (0, 0)
    if fixed_point:
        steps = np.floor(steps * 65536 + 0.5)
    coordinates = []
    for row in range(2):
        along_x = steps[:, row, 2:] + steps[:, row, :1] * np.arange(width)
        along_y = steps[:, row, 1:2] * np.arange(height)
        x_part, y_part = (
            to_device(torch.from_numpy(part.astype(np.int32 if fixed_point else np.float32)), pixels.device)
            for part in (along_x, along_y)
        )
        coordinates.append(x_part[:, None, None, :] + y_part[:, None, :, None])
    return coordinates


def _pick(planes: Tensor, x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """Pixels at integer coordinates (n, 1, H, W), clamped to the border; planes (n, 3, H * W)."""
    index = y.clamp(0, height - 1).mul_(width).add_(x.clamp(0, width - 1)).long()  # exact: below 2^24
    return planes.gather(2, index.flatten(2).expand_as(planes)).view(-1, 3, height, width)


def _taps(position: Tensor, method: Interpolation) -> Iterator[tuple[Tensor, Tensor]]:
    """Coordinates of the neighbours along one axis, and their weights."""
    first = position.floor()
    t = position - first
    match method:
        case Interpolation.NEAREST:
            yield first, torch.ones_like(t)
        case Interpolation.BILINEAR:
            yield first, 1 - t
            yield first + 1, t
        case Interpolation.BICUBIC:  # convolution with a = -1, Pillow's choice for transforms
            yield first - 1, t * (t * (2 - t) - 1)
            yield first, t * t * (t - 2) + 1
            yield first + 1, t * (1 + t * (1 - t))
            yield first + 2, t * t * (t - 1)
