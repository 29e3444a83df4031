"""Pillow's border for images that DALI has made smaller.

The filter of an antialiased resize reaches beyond the image at the first and the last line. Pillow leaves out what is
not there and rescales the remaining weights; DALI repeats the outermost pixel, which at hard contrasts differs by 10
grey levels and more. So DALI is given a black margin, which it counts in: the outermost lines come out too dark by a
factor that follows from the sizes alone, and is undone here. All other lines never see the margin.
"""

import numpy as np
import numpy.typing as npt
import torch

from pipeline.transfer import to_device
from pipeline.views.view import ViewPlan


def margins(plan: ViewPlan) -> npt.NDArray[np.int32]:
    """Width of the black margin above and below, left and right, int32 (B, 2): as far as the filter reaches.

    None where nothing is made smaller: enlarging, Pillow too shows the outermost pixel alone.
    """
    scale = _scale(plan)
    return np.where(scale > 1, np.ceil(scale), 0).astype(np.int32)


def brighten_border(images: torch.Tensor, plan: ViewPlan) -> None:
    """Undo, in place, the margin's share in the outermost lines of images that were resized with `margins`.

    Bicubic ones had none.
    """
    if plan.resampling == "bicubic":
        return
    inside = _share_inside(_scale(plan))
    for axis in (0, 1):
        for line in (np.zeros(len(plan), dtype=np.int64), plan.resized[:, axis].astype(np.int64) - 1):
            position = line - plan.window[:, axis]
            if axis == 1:
                position = np.where(plan.flip, plan.output_size[1] - 1 - position, position)
            shown = np.flatnonzero((position >= 0) & (position < plan.output_size[axis]) & (inside[:, axis] < 1))
            if not shown.size:
                continue
            which, where, factor = (
                to_device(torch.from_numpy(values), images.device)
                for values in (shown, position[shown], (1 / inside[shown, axis]).astype(np.float32))
            )
            lines = images if axis == 0 else images.transpose(1, 2)
            brighter = lines[which, where].float() * factor[:, None, None]
            lines[which, where] = brighter.add_(0.5).clamp_(max=255).to(torch.uint8)


def _scale(plan: ViewPlan) -> npt.NDArray[np.float64]:
    """Source pixels per output pixel, (B, 2)."""
    return plan.region[:, 2:] / plan.resized


def _share_inside(scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Which share of the first line's filter lies inside the image: 1 where it is not made smaller, else about 7/8."""
    half_width = np.maximum(scale, 1.0)
    # Pixel centres to both sides of the edge, as far as the widest filter reaches.
    reach = int(np.ceil(2 * half_width.max())) + 1
    centres = np.arange(-reach, reach) + 0.5
    weights = np.maximum(1 - np.abs(centres - scale[..., None] / 2) / half_width[..., None], 0)
    share = weights[..., reach:].sum(axis=-1) / weights.sum(axis=-1)
    return np.where(scale > 1, share, 1.0)
