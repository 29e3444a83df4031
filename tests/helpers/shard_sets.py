"""Small shard sets for the tests of the pipeline."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.format import BY_CLASS_FILE, INDEX_DTYPE, INDEX_FILE, SOURCES_FILE, by_class_array, npy_header
from shards.reader import ShardSet
from shards.writer import ShardWriter
from tests.helpers import pictures
from tools.benchmarks.synthetic_set import finish_set


def photo(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(pictures.photo(seed, width, height))


def encode(image: Image.Image, format: str = "JPEG") -> bytes:
    data = io.BytesIO()
    image.save(data, format, **({"quality": 90} if format == "JPEG" else {}))
    return data.getvalue()


def write_shard_set(folder: Path, encoded: Sequence[bytes], labels: Sequence[int], shards: int = 2) -> ShardSet:
    """A shard set of these JPEGs or PNGs. What Pillow cannot open gets the size 64 x 64 in the index."""
    folder.mkdir(parents=True)
    infos, records = [], []
    for shard, positions in enumerate(np.array_split(np.arange(len(encoded)), shards)):
        with ShardWriter(folder, shard) as writer:
            for position in positions.tolist():
                data = encoded[position]
                try:
                    width, height = Image.open(io.BytesIO(data)).size
                except OSError:
                    width, height = 64, 64
                extension = "png" if data.startswith(b"\x89PNG") else "jpg"
                writer.add(position, data, extension, labels[position], width, height)
            info, shard_records = writer.finish()
        infos.append(info)
        records.append(shard_records)
    num_classes = max(labels) + 1
    arrays = {INDEX_FILE: np.concatenate(records), BY_CLASS_FILE: by_class_array(np.array(labels), num_classes)}
    for name, array in arrays.items():
        (folder / name).write_bytes(npy_header(array.dtype, len(array)) + array.tobytes())
    (folder / SOURCES_FILE).write_text("".join(f"original/{position}.jpg\n" for position in range(len(encoded))))
    samples_per_class = np.bincount(labels, minlength=num_classes).tolist()
    return ShardSet.open(finish_set(folder, "test", samples_per_class, infos))


def long_tailed_labels(counts: Sequence[int], seed: int = 0) -> list[int]:
    """counts[k] samples of class k, in a random order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).tolist()


def small_images(folder: Path, counts: Sequence[int], side: int = 32) -> ShardSet:
    """PNGs of one size, as in CIFAR-LT."""
    labels = long_tailed_labels(counts)
    return write_shard_set(folder, [encode(photo(i, side, side), "PNG") for i in range(len(labels))], labels)


def photos(folder: Path, counts: Sequence[int]) -> ShardSet:
    """JPEGs of different sizes around 160 x 120 pixels."""
    labels = long_tailed_labels(counts)
    sizes = np.random.default_rng(1).integers(100, 180, (len(labels), 2)).tolist()
    return write_shard_set(folder, [encode(photo(i, *size)) for i, size in enumerate(sizes)], labels)


def flip_a_byte(dataset: ShardSet, sample: int) -> None:
    """Change the middle of a sample's bytes in its tar, on disk."""
    record = dataset.index[sample]
    path = dataset.path / dataset.info.shards[int(record["shard"])].file
    with path.open("r+b") as tar:
        tar.seek(int(record["offset"]) + int(record["size"]) // 2)
        byte = tar.read(1)
        tar.seek(-1, 1)
        tar.write(bytes([byte[0] ^ 0xFF]))


class UnreadableSet:
    """What planning needs of a data set, without any image."""

    def __init__(self, counts: Sequence[int], seed: int = 0) -> None:
        labels = np.array(long_tailed_labels(counts, seed))
        rng = np.random.default_rng(seed)
        self.index = np.zeros(len(labels), INDEX_DTYPE)
        self.index["label"] = labels
        self.index["width"], self.index["height"] = rng.integers(40, 600, (2, len(labels)))
        by_class = by_class_array(labels, len(counts))
        self.class_starts = by_class[: len(counts) + 1].astype(np.int64)
        self.sample_ids_by_class = by_class[len(counts) + 1 :]
        self.samples_per_class = np.array(counts, dtype=np.int64)
        self.checksum = f"counts {list(counts)} seed {seed}"

    def __len__(self) -> int:
        return len(self.index)
