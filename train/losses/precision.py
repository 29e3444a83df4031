"""The numerical precision of networks and losses."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["no", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Autocast = Callable[[], AbstractContextManager[Any]]


def autocast(device: torch.device, precision: Precision) -> Autocast:
    """Creates the context for a network's arithmetic. Our own, because a method cannot leave Accelerate's."""
    if precision == "no":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=_DTYPES[precision])


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler | None:
    """Keeps small float16 gradients from underflowing; None if no scale is needed."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


@contextmanager
def full_float32() -> Iterator[None]:
    """Disables TF32 inside the block: torch allows it for convolutions, whose inputs then keep 10 bits of mantissa.

    Uses the same flags as Accelerate: torch refuses to read them once its newer `fp32_precision` has been set.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
