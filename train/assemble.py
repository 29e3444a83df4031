"""uint8 images to the input of the network: paste, mix, normalise.

The only place where images are normalised; training and evaluation both go through it. Mixing happens on float values,
never on uint8, whose rounding would change the mixture.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.recipes import Normalization


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """bool (batch, height, width), true inside each half-open box. boxes int32 (batch, 4): top, left, bottom, right."""
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None, :]
    top, left, bottom, right = (edge[:, None, None] for edge in boxes.unbind(1))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


@dataclass(frozen=True)
class Assembler:
    """Turns uint8 (batch, height, width, 3) into normalised float32 (batch, 3, height, width), channels last in memory.

    Build it with `Assembler.create`; mean and std are float32 (3,) on the device, in units of grey levels.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def create(cls, normalization: Normalization, device: torch.device) -> "Assembler":
        """Constants of a recipe (on a 0–1 scale) as tensors on the device."""
        mean = 255 * torch.tensor(normalization.mean, dtype=torch.float32)
        std = 255 * torch.tensor(normalization.std, dtype=torch.float32)
        return cls(mean.to(device), std.to(device))

    def plain(self, images: Tensor) -> Tensor:
        """Normalise."""
        normalised = (images.float() - self.mean) / self.std
        return normalised.permute(0, 3, 1, 2)  # a view: NHWC in memory is channels_last

    def paste(self, background: Tensor, foreground: Tensor, boxes: Tensor) -> Tensor:
        """Overwrite each box of the background with the same box of the foreground, then normalise (CMO, CutMix)."""
        mask = box_mask(boxes, background.shape[1], background.shape[2])
        return self.plain(torch.where(mask[..., None], foreground, background))

    def mixup(self, first: Tensor, second: Tensor, lam: Tensor) -> Tensor:
        """lam · first + (1 − lam) · second, normalised; lam float (batch,). Linear, so the order does not matter."""
        weight = lam.float()[:, None, None, None]
        return self.plain(weight * first.float() + (1 - weight) * second.float())
