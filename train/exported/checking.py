"""Comparing an exported network with the original, right after the export."""

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 1e-4
_BATCH = 3


class CheckFailedError(RuntimeError):
    """The exported network's output differs from the original's."""


def random_images(size: int, batch: int = _BATCH) -> Tensor:
    """Normalised images (batch, 3, size, size) for the comparison."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def check_equal(
    what: str,
    original: Callable[[Tensor], Tensor],
    exported: Callable[[Tensor], Tensor],
    images: Tensor,
    tolerance: float = TOLERANCE,
) -> float:
    """The largest difference between logits, in units of the largest logit if that is above 1.

    Raises:
        CheckFailedError: it is above the tolerance, or the best classes differ although their margin is larger.
    """
    expected, found = original(images), exported(images)
    if expected.shape != found.shape:
        raise CheckFailedError(f"{what}: logits of shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    scale = max(1.0, float(expected.abs().max()))
    difference = float((expected - found).abs().max()) / scale
    if not difference <= tolerance:  # NaN too
        raise CheckFailedError(f"{what}: logits differ by {difference:.2g} of {scale:.2g}, more than {tolerance:g}")
    best = found.argmax(dim=1, keepdim=True)
    lost = (expected.max(dim=1).values - expected.gather(1, best)[:, 0]) / scale
    if float(lost.max()) > 2 * tolerance:
        raise CheckFailedError(f"{what}: a different class is best")
    return difference
