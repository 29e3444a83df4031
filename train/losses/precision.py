"""How precisely networks and losses compute."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["no", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Autocast = Callable[[], AbstractContextManager[Any]]


def autocast(device: torch.device, precision: Precision) -> Autocast:
    """What makes the context of a network's arithmetic. Ours, as a method could not leave Accelerate's."""
    if precision == "no":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=_DTYPES[precision])


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler | None:
    """What keeps small gradients of float16 above zero; None where no scale is needed."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 within: torch allows it to convolutions, whose inputs then keep 10 bits of their mantissa.

    By the flags that Accelerate sets too: torch refuses to read them once its newer `fp32_precision` has been set.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
