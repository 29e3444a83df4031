"""Moving host values to the device without waiting for it."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_ALIGNMENT_BYTES = 16  # required by the widest types and vectorised loads


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device; on the CPU it is the same tensor.

    A GPU copies asynchronously from pinned memory. A copy from other memory may first wait for all earlier work.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def values_to_device(values: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Arrays as tensors on the device, in one transfer; floating point becomes float32. They share one block."""
    tensors = {name: _tensor(value) for name, value in values.items()}
    if not tensors:
        return {}
    blocks = [_padded_bytes(tensor) for tensor in tensors.values()]
    parts = to_device(torch.cat(blocks), device).split([len(block) for block in blocks])
    return {
        name: part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def _tensor(value: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(value))
    return tensor.float() if tensor.is_floating_point() else tensor


def _padded_bytes(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1).view(torch.uint8)
    return functional.pad(flat, (0, -len(flat) % _ALIGNMENT_BYTES))
