"""Small sources with generated images, for the tests of the shard builder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from shards.source import JSON, SampleRef


def picture(seed: int, width: int = 40, height: int = 32, mode: str = "RGB", file_format: str = "JPEG") -> bytes:
    """A smooth random image, encoded."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


class FolderFetcher:
    """Reads files of a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fetch(self, ref: SampleRef) -> bytes:
        return (self.root / str(ref.location)).read_bytes()

    def will_fetch(self, ref: SampleRef) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class FolderSource:
    """Files of a folder; each name begins with its label: "2/cat.jpg"."""

    root: Path
    samples: Sequence[SampleRef]
    class_names: list[str]
    name: str = "made-up"
    split: str = "train"
    options: dict[str, JSON] = field(default_factory=dict)
    inputs: dict[str, dict[str, JSON]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def estimated_bytes(self) -> int | None:
        return sum((self.root / str(ref.location)).stat().st_size for ref in self.samples)

    def open(self) -> FolderFetcher:
        return FolderFetcher(self.root)

    def close(self) -> None:
        pass


def folder_source(root: Path, files: dict[str, bytes], num_classes: int = 3) -> FolderSource:
    """Write `files` (name → bytes) below `root` and offer them in the order given."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return opened_folder(root, list(files), num_classes)


def opened_folder(root: Path, names: list[str], num_classes: int = 3) -> FolderSource:
    samples = [SampleRef(name, int(name.split("/")[0]), name) for name in names]
    return FolderSource(root, samples, [f"class {i}" for i in range(num_classes)])


def pictures(count: int, num_classes: int = 3) -> dict[str, bytes]:
    """`count` JPEGs of several sizes, labels in turn."""
    return {f"{i % num_classes}/{i}.jpg": picture(i, 24 + i % 7, 24 + i % 5) for i in range(count)}


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
