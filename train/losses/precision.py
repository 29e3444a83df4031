"""How precisely a GPU computes in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 within: torch allows it to convolutions, whose inputs then keep 10 bits of their mantissa.

    By the flags that Accelerate sets too: torch refuses to read them once its newer ``fp32_precision`` has been set.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
