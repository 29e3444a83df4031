"""One image of every kind that the builder lets in."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.shard_sets import photo


def kinds(folder: Path) -> list[Path]:
    """Files of every mode and format that the builder lets in, in a new folder."""
    folder.mkdir(parents=True)
    grey, colour = photo(1, 40, 36).convert("L"), photo(2, 36, 40)
    transparent = colour.convert("RGBA")
    transparent.putalpha(grey.resize(colour.size))
    frames = [photo(seed, 33, 34).convert("P") for seed in range(3)]
    images = {
        "16.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "16.tif": Image.fromarray(np.asarray(grey).astype(np.uint16) * 200),
        "alpha.png": transparent,
        "palette.png": colour.convert("P"),
        "two.png": grey.convert("1"),
        "grey-alpha.png": grey.convert("LA"),
        "cmyk.jpg": colour.convert("CMYK"),
        "grey.jpg": grey,
        "tiny.png": photo(3, 20, 20).resize((1, 5)),
        "one-pixel.png": photo(5, 20, 20).resize((1, 1)),
        "one-pixel.jpg": photo(6, 20, 20).resize((1, 1)),
        "tiny.jpg": photo(7, 20, 20).resize((3, 2)),
        "plain.jpg": photo(8, 61, 43),
        "plain.png": photo(9, 32, 32),
        "pixels.bmp": photo(10, 17, 21),
        "transparent.webp": transparent,
        "wide.webp": photo(4, 90, 20).resize((90, 3)),
    }
    for name, image in images.items():
        image.save(folder / name)
    photo(11, 50, 30).save(folder / "progressive.jpg", progressive=True)
    photo(12, 50, 30).save(folder / "rotated.jpg", exif=_rotated())
    frames[0].save(folder / "frames.gif", save_all=True, append_images=frames[1:])
    return sorted(folder.iterdir())


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    return exif
