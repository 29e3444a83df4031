"""The benchmarks' data: photograph-like JPEG files, generated or given, as class folders and as shards."""

import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shards.build import BuildOptions, build_shard_set
from shards.images import ImagePolicy
from shards.reader import ShardSet
from tools.sources.archives import Folder
from tools.sources.file_source import FileSource
from tools.sources.imagefolder import list_class_folders
from tools.sources.subsets import long_tailed_counts

_CLASSES, _IMBALANCE = 20, 0.05
IMAGENET_SIZE = (500, 375)  # the median photograph; in iNaturalist 2018 it is 800 x 600
_DISTINCT = 96  # distinct generated images; the files repeat them
_QUALITY = 95  # with the texture below: about 100 KB at 500 x 375, the mean of ImageNet


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Args:
        images: JPEG files for loaders, steps and evaluations.
        copied_images, cached_images, checked_images: for builds that copy files from disk, copy files cached in memory,
            and decode; large enough for the start of workers to matter little, as in long builds. The cached files and
            a copy of them, 0.2 MB per image, have to fit into memory.
        rounds: rounds of every comparison.
        batch_size: for loaders and steps.
        batches: batches counted per round, after those that fill the queues.
        many_samples, many_classes: size of the largest index for draws.
    """

    images: int
    copied_images: int
    cached_images: int
    checked_images: int
    rounds: int
    batch_size: int
    batches: int
    many_samples: int = 10**8
    many_classes: int = 10**5


QUICK = Scale(
    images=1200,
    copied_images=9000,
    cached_images=30_000,
    checked_images=4800,
    rounds=3,
    batch_size=64,
    batches=8,
)
# A GPU takes a batch of 64 in a blink, and a piece of a day with one has to end within minutes.
QUICK_ON_GPU = replace(QUICK, images=2400, batch_size=256, batches=24)
FULL = Scale(
    images=6000,
    copied_images=60_000,
    cached_images=60_000,
    checked_images=24_000,
    rounds=7,
    batch_size=128,
    batches=50,
)

# Too small to measure anything: for tests, and to check that everything runs.
TOY = Scale(
    images=40,
    copied_images=50,
    cached_images=50,
    checked_images=40,
    rounds=1,
    batch_size=6,
    batches=1,
    many_samples=200_000,
    many_classes=2000,
)


@dataclass
class Bench:
    """The settings that all benchmarks share.

    Args:
        scratch: a folder for temporary data.
        given: a folder of JPEGs to use instead of generated ones, or None.
        device: where the network and the loader's batches are.
        cores: workers and threads of every variant.
        photo_size: width and height of generated images, about.
        saved_to: see `figures.Report`.
    """

    scratch: Path
    given: Path | None
    scale: Scale
    device: torch.device
    cores: int
    photo_size: tuple[int, int] = IMAGENET_SIZE
    saved_to: tuple[Path, str] | None = None

    @cached_property
    def folder(self) -> Path:
        """Class folders of JPEG files."""
        return write_class_folders(self.scratch / "folders", self.scale.images, self.given, self.photo_size)

    @cached_property
    def shards(self) -> ShardSet:
        """The class folders as a shard set, with several shards per core, so every reader has some."""
        options = BuildOptions(ImagePolicy("header"), samples_per_shard=-(-self.scale.images // (4 * self.cores)))
        build_shard_set(source_of(self.folder), self.scratch / "shards", options, workers=1)
        return ShardSet.open(self.scratch / "shards")

    def fitting(self, batch_size: int) -> int:
        """This batch size, or less where the images would not fill several such batches."""
        return min(batch_size, self.scale.images // 4)

    def describe(self) -> dict[str, Any]:
        """Number and size of the images."""
        index = self.shards.index
        pixels = index["width"].astype(np.int64) * index["height"]
        return {
            "images": len(index),
            "made": "generated" if self.given is None else "given",
            "mean_kilobytes": round(float(index["size"].mean()) / 1000, 1),
            "mean_megapixels": round(float(pixels.mean()) / 1e6, 3),
        }

    def settings(self) -> dict[str, Any]:
        """The scale's settings for comparisons by batches."""
        return {
            "device": self.device.type,
            "batch_size": self.scale.batch_size,
            "batches": self.scale.batches,
            "rounds": self.scale.rounds,
        }


def source_of(folder: Path) -> FileSource:
    """Class folders as a source of shards."""
    container = Folder(folder)
    tree = list_class_folders(container, "")
    return FileSource(
        "benchmark", "train", tree.class_names, tree.names, tree.labels.tolist(), container, options={}, inputs={}
    )


def write_class_folders(root: Path, count: int, given: Path | None, size: tuple[int, int] = IMAGENET_SIZE) -> Path:
    """`count` JPEG files under root/CLASS/, long-tailed; the files of `given` in turn, or generated ones."""
    if given is None:
        pictures = [photo(seed, size) for seed in range(min(_DISTINCT, count))]
    else:
        pictures = [path.read_bytes() for path in sorted(given.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
        if not pictures:
            raise FileNotFoundError(f"{given}: no .jpg or .jpeg file in this folder; give one with photographs")
    shape = long_tailed_counts(10_000, _CLASSES, _IMBALANCE)
    shares = np.maximum(1, (count * shape / shape.sum()).astype(np.int64))
    shares[0] += count - shares.sum()
    labels = np.repeat(np.arange(_CLASSES), shares)
    for number, label in enumerate(labels.tolist()):
        path = root / f"class{label:02d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[number % len(pictures)])
    return root


def photo(seed: int, size: tuple[int, int] = IMAGENET_SIZE) -> bytes:
    """A JPEG that costs about as much to decode as an ImageNet photograph: shapes at all scales, and some grain.

    Approximately of this width and height; portrait format for every fourth seed.
    """
    rng = np.random.default_rng(seed)
    width, height = (int(side * rng.uniform(0.85, 1.15)) for side in (size[::-1] if seed % 4 == 3 else size))
    pixels = np.full((height, width, 3), 128.0, dtype=np.float32)
    for cell, strength in ((160, 55), (60, 35), (20, 22), (7, 14), (3, 8)):
        coarse = rng.normal(0, strength, (height // cell + 2, width // cell + 2, 3))
        # The three channels share half of the contrast: photographs vary mostly in brightness.
        coarse = 0.6 * coarse + 0.4 * coarse.mean(axis=2, keepdims=True) * 3**0.5
        planes = [Image.fromarray(coarse[:, :, c].astype(np.float32)) for c in range(3)]
        pixels += np.stack([np.asarray(p.resize((width, height), Image.Resampling.BICUBIC)) for p in planes], axis=2)
    pixels += rng.normal(0, 5, (height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
