"""Near-duplicates between two sets: a test set that repeats training images measures memorisation.

An image's fingerprint is a difference hash: the image is shrunk to a few grey pixels, and one bit per pair of
neighbours records which is brighter. Copies, other sizes and stronger compression change few bits. It does not detect
crops or mirrored copies, and nearly flat images have no fingerprint.
"""

import io
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shards.reader import ShardSet

_SIDE = 8
_CHUNK_BITS = 16
MAX_DISTANCE = 6  # of 128 bits; chunks of 16 find every pair up to 7
_FLAT = 4.0  # standard deviation of grey values below which an image has no fingerprint


@dataclass(frozen=True)
class Pair:
    """Two images that look alike.

    Attributes:
        first, second: sample ids in the two sets.
        distance: number of bits in which their fingerprints differ, 0 to `MAX_DISTANCE` of 128.
    """

    first: int
    second: int
    distance: int


def fingerprint(image: Image.Image) -> int | None:
    """128 bits, half of them from horizontal neighbours; None for an image that is nearly flat."""
    image.draft("L", (4 * _SIDE, 4 * _SIDE))  # JPEGs are decoded at a reduced size
    grey = image.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.int16)
    if values.std() < _FLAT:
        return None
    across = values[:_SIDE, 1:] > values[:_SIDE, :-1]
    down = values[1:, :_SIDE] > values[:-1, :_SIDE]
    return int.from_bytes(np.packbits(np.concatenate([across.ravel(), down.ravel()])).tobytes(), "big")


def fingerprints(shards: ShardSet) -> dict[int, int]:
    """Fingerprints by sample id, without nearly flat images. Reads every image once."""
    found = {}
    for sample in range(len(shards)):
        with Image.open(io.BytesIO(shards.encoded(sample).tobytes())) as image:
            value = fingerprint(image)
        if value is not None:
            found[sample] = value
    return found


def near_duplicates(first: ShardSet, second: ShardSet) -> list[Pair]:
    """The pairs that look alike, sorted by sample id of the second set, then by distance."""
    return matches(fingerprints(first), fingerprints(second))


def matches(first: dict[int, int], second: dict[int, int]) -> list[Pair]:
    """Pairs of fingerprints at most `MAX_DISTANCE` bits apart."""
    buckets: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for sample, value in first.items():
        for key in _chunks(value):
            buckets[key].append(sample)
    pairs = []
    for sample, value in second.items():
        candidates = {other for key in _chunks(value) for other in buckets.get(key, ())}
        distances = {other: (first[other] ^ value).bit_count() for other in candidates}
        pairs += [Pair(other, sample, bits) for other, bits in distances.items() if bits <= MAX_DISTANCE]
    return sorted(pairs, key=lambda pair: (pair.second, pair.distance, pair.first))


def _chunks(value: int) -> list[tuple[int, int]]:
    """Two values that differ in fewer bits than there are chunks share one of these."""
    mask = (1 << _CHUNK_BITS) - 1
    return [(place, (value >> place) & mask) for place in range(0, 128, _CHUNK_BITS)]


def describe(first: ShardSet, second: ShardSet, pairs: list[Pair], shown: int = 10) -> str:
    """A report of what was found, with the file names of the first few pairs."""
    names = f"{first.path} and {second.path}"
    if not pairs:
        return f"no near-duplicates between {names} (crops and mirrored copies are not detected)"
    affected = len({pair.second for pair in pairs})
    lines = [f"near-duplicates: {affected:,} images in {second.path} look like images in {first.path}"]
    for pair in pairs[:shown]:
        lines.append(f"  {second.source_of(pair.second)}  looks like  {first.source_of(pair.first)}")
    if len(pairs) > shown:
        lines.append(f"  … and {len(pairs) - shown:,} more pairs; --json lists all")
    return "\n".join(lines)
