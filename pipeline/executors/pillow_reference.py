"""The reference executor: Pillow, one image at a time, as in the official training code.

Slow and plain. Tests compare every other executor with it, and benchmarks use it as the baseline.
"""

import io

import numpy as np
from PIL import Image

from pipeline.augmentation.pillow_operations import pillow_operation
from pipeline.views.view import ViewPlan

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def reference_view(encoded: bytes | memoryview | np.ndarray, plan: ViewPlan, i: int) -> np.ndarray:
    """Decodes an image and makes view `i` of the plan: uint8 (H, W, 3)."""
    with Image.open(io.BytesIO(bytes(encoded))) as opened:
        return picture_view(opened.convert("RGB"), plan, i)


def picture_view(image: Image.Image, plan: ViewPlan, i: int) -> np.ndarray:
    """View `i` of the plan for a decoded RGB image: uint8 (H, W, 3)."""
    top, left, height, width = (int(value) for value in plan.region[i])
    image = image.crop((left, top, left + width, top + height))
    resized_height, resized_width = (int(value) for value in plan.resized[i])
    if (resized_width, resized_height) != image.size:
        image = image.resize((resized_width, resized_height), FILTERS[plan.resampling])
    image = cut_window(image, plan, i)
    if plan.flip[i]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for operation in plan.operations:
        image = pillow_operation(image, operation, i)
    return np.asarray(image)


def cut_window(image: Image.Image, plan: ViewPlan, i: int) -> Image.Image:
    """The output window of a resized image, padded where it reaches outside."""
    top, left = (int(value) for value in plan.window[i])
    height, width = plan.output_size
    if plan.pad_mode == "zero":
        return image.crop((left, top, left + width, top + height))  # Pillow fills with black
    pixels = np.asarray(image)
    margins = [
        (max(0, -start), max(0, start + length - extent))
        for start, length, extent in ((top, height, image.height), (left, width, image.width))
    ]
    padded = np.pad(pixels, [*margins, (0, 0)], mode="reflect")
    top, left = max(top, 0), max(left, 0)
    return Image.fromarray(padded[top : top + height, left : left + width])
