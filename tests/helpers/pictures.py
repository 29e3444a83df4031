"""Photo-like pictures for tests, made up: smooth shading, hard edges, texture, saturated and black areas."""

import numpy as np
from PIL import Image


def photo(seed: int, width: int = 97, height: int = 80) -> np.ndarray:
    """A picture, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    for _ in range(4):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        pixels[top : top + height // 4, left : left + width // 4] = rng.integers(0, 256, 3)
    pixels += rng.integers(-12, 13, pixels.shape)
    pixels[: height // 8] = pixels[: height // 8, :, :1]  # grey: saturation 0
    return np.clip(pixels, 0, 255).astype(np.uint8)
