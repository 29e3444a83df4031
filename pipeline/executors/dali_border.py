"""Pillow's border for images that DALI has downscaled.

The filter of an antialiased resize reaches beyond the image at the first and the last line. Pillow omits missing pixels
and rescales the remaining weights; DALI repeats the outermost pixel, which at hard edges differs by 10 grey levels or
more. So DALI gets images with a black margin, which it includes: the outermost lines come out too dark by a factor that
depends only on the sizes and is corrected here. All other lines are unaffected by the margin.
"""

import numpy as np
import numpy.typing as npt
import torch

from pipeline.transfer import to_device
from pipeline.views.view import ViewPlan


def margins(plan: ViewPlan) -> npt.NDArray[np.int32]:
    """Width of the black margin above and below, left and right, int32 (B, 2): as far as the filter reaches.

    None if nothing is downscaled: when upscaling, Pillow also uses only the outermost pixel.
    """
    scale = _scale(plan)
    return np.where(scale > 1, np.ceil(scale), 0).astype(np.int32)


def brighten_border(images: torch.Tensor, plan: ViewPlan) -> None:
    """Undo, in place, the margin's effect on the outermost lines of images that were resized with `margins`.

    Bicubic resizes have no margin.
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
    """The share of the first line's filter that is inside the image: 1 unless downscaled, else about 7/8."""
    half_width = np.maximum(scale, 1.0)
    # Pixel centres on both sides of the edge, as far as the widest filter reaches.
    reach = int(np.ceil(2 * half_width.max())) + 1
    centres = np.arange(-reach, reach) + 0.5
    weights = np.maximum(1 - np.abs(centres - scale[..., None] / 2) / half_width[..., None], 0)
    share = weights[..., reach:].sum(axis=-1) / weights.sum(axis=-1)
    return np.where(scale > 1, share, 1.0)
