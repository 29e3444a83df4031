"""From uint8 images to the network's input: paste, mix, normalise.

The only place where images are normalised, for both training and evaluation. Mixing uses float values, never uint8,
because rounding would change the mixture. On a GPU, pasting and normalising are one kernel (paste_kernel.py); on the
CPU the torch code here does the same, and is the reference.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.views.presets import Normalization


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """bool (batch, height, width), true inside each half-open box. boxes int32 (batch, 4): top, left, bottom, right."""
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None, :]
    top, left, bottom, right = (edge[:, None, None] for edge in boxes.unbind(1))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def input_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the network's first layer: that of the autocast context, if there is one."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


@dataclass(frozen=True)
class InputBuilder:
    """Turns uint8 (batch, height, width, 3) into normalised (batch, 3, height, width), channels last in memory.

    The result is float32, or inside an autocast context its dtype, to which the first layer would convert it anyway.
    Create it with `InputBuilder.create`. mean, in grey levels, and scale, 1 / standard deviation, are float32 (3,).
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def create(cls, normalization: Normalization, device: torch.device) -> "InputBuilder":
        """Constants of a preset (on a 0–1 scale) as tensors on the device."""
        mean = 255 * torch.tensor(normalization.mean, dtype=torch.float32)
        std = 255 * torch.tensor(normalization.std, dtype=torch.float32)
        return cls(mean.to(device), (1 / std).to(device))

    def plain(self, images: Tensor) -> Tensor:
        """Normalise; features of a frozen network, (batch, width), have no pixels and are only converted to float32."""
        if images.ndim == 2:
            return images.float()
        if images.is_cuda:
            nowhere = images.new_zeros((len(images), 4), dtype=torch.int32)
            return self._paste_on_gpu(images, images, nowhere)
        return self._normalised(images)

    def paste(self, background: Tensor, foreground: Tensor, boxes: Tensor) -> Tensor:
        """Overwrite each box of the background with the same box of the foreground, then normalise (CMO, CutMix)."""
        if background.is_cuda:
            return self._paste_on_gpu(background, foreground, boxes)
        return self.paste_reference(background, foreground, boxes)

    def paste_reference(self, background: Tensor, foreground: Tensor, boxes: Tensor) -> Tensor:
        """`paste` with torch operations, for any device: used on the CPU, and the kernel's reference."""
        mask = box_mask(boxes, background.shape[1], background.shape[2])
        return self._normalised(torch.where(mask[..., None], foreground, background))

    def mixup(self, first: Tensor, second: Tensor, lam: Tensor) -> Tensor:
        """lam · first + (1 − lam) · second, normalised; lam float (batch,). Linear, so the order does not matter."""
        weight = lam.float()[:, None, None, None]
        return self._normalised(weight * first.float() + (1 - weight) * second.float())

    def _normalised(self, images: Tensor) -> Tensor:
        # A subtraction and a multiplication are rounded identically everywhere, unlike a division, which GPUs
        # approximate, or a product and a sum, which compilers fuse. So kernel and reference agree to the last bit.
        normalised = (images.float() - self.mean) * self.scale
        # A view: NHWC in memory is channels_last.
        return normalised.to(input_dtype(images.device)).permute(0, 3, 1, 2)

    def _paste_on_gpu(self, background: Tensor, foreground: Tensor, boxes: Tensor) -> Tensor:
        # Imported here: a CPU-only build of torch comes without Triton.
        from train.inputs.paste_kernel import paste_and_normalise

        dtype = input_dtype(background.device)
        return paste_and_normalise(background, foreground, boxes, self.mean, self.scale, dtype)
