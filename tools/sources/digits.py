"""Handwritten digits that come with scikit-learn, made long-tailed: real images without a download."""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.commandline import finite_number
from shards.source import JSON, SampleRef, Source
from tools.sources.pixel_source import PixelSource
from tools.sources.subsets import cmo_subset, long_tailed_counts

TEST_PER_CLASS = 40
SIDE = 32
# 1797 digits, 174 to 183 per class: after its 40 test images, the smallest class has 134 left for training.
_TRAIN_MAX = 134


class DigitsLT:
    """The subcommand `digits-lt`."""

    help = "1797 handwritten digits from scikit-learn, made long-tailed; nothing to download"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--split",
            choices=("train", "test"),
            default="train",
            help=f"test: {TEST_PER_CLASS} images of every digit, always the same (default: train)",
        )
        parser.add_argument(
            "--imb-factor",
            type=finite_number,
            default=0.02,
            help="smallest / largest class of the training set (default: 0.02, that is 134 zeros to 2 nines)",
        )

    def from_args(self, namespace: argparse.Namespace) -> dict[str, Source]:
        from sklearn.datasets import load_digits  # takes a second to import, and no other source needs it

        digits = load_digits()
        labels = digits.target.astype(np.int64)
        chosen = test = np.sort(cmo_subset(labels, [TEST_PER_CLASS] * 10))
        options: dict[str, JSON] = {"split": namespace.split}
        if namespace.split == "train":
            rest = np.delete(np.arange(labels.size), test)
            counts = long_tailed_counts(_TRAIN_MAX, 10, namespace.imb_factor)
            chosen = np.sort(rest[cmo_subset(labels[rest], counts)])
            options["imb_factor"] = namespace.imb_factor
        samples = [
            SampleRef(f"digits/{index:04d}", int(labels[index]), row) for row, index in enumerate(chosen.tolist())
        ]
        images = np.stack([enlarge(digits.images[index]) for index in chosen])
        class_names = [str(digit) for digit in range(10)]
        return {"": PixelSource("digits-lt", namespace.split, class_names, images, samples, options, {})}


def enlarge(grey: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A digit, float (8, 8) in 0 .. 16, as uint8 (32, 32, 3), bilinear."""
    levels = np.rint(grey * (255 / 16)).astype(np.uint8)
    large = Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(large.convert("RGB"))
