"""Fuses the tensor part of an operation into a few kernels where that pays: on a GPU, by torch.compile.

Eagerly every arithmetic step of an operation reads and writes all pixels once more. On the CPU a batch is cut into
chunks that stay in the cache, so that costs less there, and compiling takes longer: the CPU stays eager.
"""

from collections.abc import Callable
from functools import cache, wraps

import torch
from torch import Tensor

Kernel = Callable[..., Tensor]

COMPILED_DEVICES = frozenset({"cuda"})

# Whole numbers are cut off after each operation, so every step has to be rounded as it is written. Without the first
# option Triton fuses products with sums; without the second it divides approximately.
ROUNDING: dict[str, str | int | bool | Callable[..., object]] = {
    "emulate_precision_casts": True,
    "eager_numerics.division_rounding": True,
}


def compiles_for(device: torch.device) -> bool:
    """Whether kernels are compiled there."""
    return device.type in COMPILED_DEVICES


def compiled_on_gpu(kernel: Kernel) -> Kernel:
    """Compiles a function of tensors (n, ...) when it first gets some that are on a GPU; on the CPU, leaves it alone.

    One compilation serves every n above 1. n = 1 and other sizes along the other dimensions have their own, up to
    torch's `recompile_limit`, past which torch warns and runs eagerly.
    Raises RuntimeError where torch cannot compile for the device.
    """

    @wraps(kernel)
    def run(*tensors: Tensor) -> Tensor:
        device = tensors[0].device
        if not compiles_for(device):
            return kernel(*tensors)
        for tensor in tensors:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            return _compiled(kernel)(*tensors)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).splitlines()[0]
            raise RuntimeError(
                f"{kernel.__name__} was not compiled for {device}: {reason}. Compiling takes Triton, which comes with "
                "torch for CUDA, and a C compiler (gcc, or what CC names): install what is missing, or set "
                "TORCH_COMPILE_DISABLE=1 to compile nothing, which is slower"
            ) from error

    return run


@cache
def _compiled(kernel: Kernel) -> Kernel:
    # Here and not at import, because torch.compile takes a second to load.
    return torch.compile(kernel, dynamic=False, options=ROUNDING)
