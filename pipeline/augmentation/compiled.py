"""Fuses the tensor part of an operation into a few kernels where that pays off: on a GPU, with torch.compile.

In eager mode every arithmetic step of an operation reads and writes all pixels again. On the CPU a batch is split into
chunks that stay in the cache, so this costs less, and compiling takes longer: the CPU stays eager.
"""

from collections.abc import Callable
from functools import cache, wraps

import torch
from torch import Tensor

Kernel = Callable[..., Tensor]

COMPILED_DEVICES = frozenset({"cuda"})

# Values are truncated to whole numbers after each operation, so every step must round exactly as written. Without the
# first option Triton fuses products with sums; without the second it divides approximately.
ROUNDING: dict[str, str | int | bool | Callable[..., object]] = {
    "emulate_precision_casts": True,
    "eager_numerics.division_rounding": True,
}


def compiles_for(device: torch.device) -> bool:
    """Whether kernels are compiled on this device."""
    return device.type in COMPILED_DEVICES


def compiled_on_gpu(kernel: Kernel) -> Kernel:
    """Compiles a function of tensors (n, ...) on its first call with GPU tensors; leaves it unchanged on the CPU.

    One compilation serves every n above 1. n = 1 and other sizes in the other dimensions are compiled separately, up to
    torch's `recompile_limit`, beyond which torch warns and runs eagerly.
    Raises RuntimeError if torch cannot compile for the device.
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
                f"{kernel.__name__} was not compiled for {device}: {reason}. Compiling requires Triton, which comes "
                "with torch for CUDA, and a C compiler (gcc, or the one in CC): install what is missing, or set "
                "TORCH_COMPILE_DISABLE=1 to compile nothing, which is slower"
            ) from error

    return run


@cache
def _compiled(kernel: Kernel) -> Kernel:
    # Here instead of at import, because torch.compile takes a second to load.
    return torch.compile(kernel, dynamic=False, options=ROUNDING)
