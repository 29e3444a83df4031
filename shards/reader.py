"""Reading a shard set: memory-mapped index and tars; nothing is copied, and nothing is parsed per sample.

Opening reads dataset.json, maps the index and compares sizes and counts; every error names the file and the remedy.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import itertools
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.class_names import class_ids, one_form
from shards.files import OutsideError, hash_file
from shards.format import (
    BY_CLASS_FILE,
    INDEX_DTYPE,
    INDEX_FILE,
    SOURCES_FILE,
    DatasetInfo,
    FileInfo,
    by_class_array,
    content_checksum,
    npy_header,
    read_dataset_info,
    shard_file,
)
from shards.object_store import is_url

if TYPE_CHECKING:
    from shards.local_copy import CacheOptions

# Opening hashes index.npy and by_class.npy up to this total size (0.3 s; ~14 million samples). Above it, only
# `tools.verify_shards` does: at 10^8 samples reading 3 GB would cost more than the rest of the start-up.
HASHED_INDEX_BYTES = 512 * 2**20


class CorruptSampleError(OutsideError):
    """The bytes of a sample are not those that the build wrote.

    shard: file name of its tar; sample: sample id; source: the image's original file.
    """

    def __init__(self, shard: str, sample: int, source: str, fault: str) -> None:
        super().__init__(shard, sample, source, fault)
        self.shard, self.sample, self.source, self.fault = shard, sample, source, fault

    def __str__(self) -> str:
        return (
            f"{self.shard}: sample {self.sample} ({self.source}) is corrupt: {self.fault}; "
            "delete the folder and build the set again, or restore that file"
        )


class ShardSet:
    """An opened shard set. Picklable: another process opens the same folder.

    path: its location, for messages: its folder, or a URL.
    folder: the local files: the same folder, or the local copy of a set in a store.
    samples_ahead: how many samples ahead of reading `will_read` is best called.
    info: dataset.json.
    index: INDEX_DTYPE (N,), mapped read-only.
    class_starts: int64 (C + 1,); sample_ids_by_class: uint32 (N,), mapped. The samples of class c are
        sample_ids_by_class[class_starts[c] : class_starts[c + 1]], ascending.
    checksum: hex, equal for sets whose training data are equal.
    """

    _given_classes: tuple[str, ...] | None = None  # set by `with_classes`
    samples_ahead = 0  # the kernel's read-ahead works well with a few batches of any size

    def __init__(self, path: Path | str) -> None:
        self.path: Path | str = Path(path)
        self.folder = Path(path)
        self.info: DatasetInfo = read_dataset_info(self.folder)
        _check_sizes(self.folder, (*self.info.shards, *self.info.files))
        if sum(file.bytes for file in self.info.files[:2]) <= HASHED_INDEX_BYTES:
            for file in self.info.files[:2]:
                check_hash(self.folder, file)
        self._map_index()
        self._tars = [_map_tar(self.folder / shard.file) for shard in self.info.shards]

    @classmethod
    def open(cls, path: Path | str, cache: CacheOptions | None = None) -> ShardSet:
        """Open the set in folder `path`, or at a URL such as s3://bucket/imagenet-lt/train.

        cache: location and size limit of the local copy of a set in a store; not used for a folder.

        Raises FileNotFoundError if it or one of its files is missing, and ValueError if sizes or counts are not those
        of the build; for a URL also StoreError. Contents are not read: `check_sample` and `tools.verify_shards`
        compare checksums.
        """
        if not is_url(path):
            return ShardSet(path)
        from shards.remote_set import RemoteShardSet  # it imports this module

        return RemoteShardSet(str(path), cache)

    def _map_index(self) -> None:
        """Map the arrays in `folder`, whose sizes are already checked, and compare them with `info`."""
        self.checksum = content_checksum(self.info)
        self.index = map_index(self.folder, self.info)
        by_class, num_classes = map_by_class(self.folder, self.info), len(self.info.class_names)
        self.class_starts = by_class[: num_classes + 1].astype(np.int64)
        self.sample_ids_by_class = by_class[num_classes + 1 :]
        self.samples_per_class = np.array(self.info.samples_per_class, np.int64)
        if self.class_starts[0] != 0 or not np.array_equal(np.diff(self.class_starts), self.samples_per_class):
            raise ValueError(f"{self.path}: {BY_CLASS_FILE} and dataset.json disagree on the class sizes; {_REBUILD}")

    def with_classes(self, names: Sequence[str], whose: str) -> ShardSet:
        """This set with the class ids of `names`: labels, counts and names follow the set or network `whose`.

        Classes are matched by name, in any order and Unicode form; the set may lack some. Sample ids do not change.

        Raises:
            ValueError: it has samples of a class that is not among `names`.
        """
        ids = class_ids(self.class_names, names, self.samples_per_class, str(self.path), whose)
        given = tuple(names)
        if given == self.info.class_names:
            return self
        adjusted = copy.copy(self)
        adjusted.__dict__.pop("labels", None)  # cached under the old ids
        if not np.array_equal(ids, np.arange(len(given))):
            adjusted.index = np.array(self.index)
            adjusted.index["label"] = ids[self.index["label"].astype(np.int64)]
            by_class = by_class_array(adjusted.index["label"], len(given))
            adjusted.class_starts = by_class[: len(given) + 1].astype(np.int64)
            adjusted.sample_ids_by_class = by_class[len(given) + 1 :]
            adjusted.samples_per_class = np.diff(adjusted.class_starts)
        counts = tuple(adjusted.samples_per_class.tolist())
        adjusted.info = replace(self.info, class_names=given, samples_per_class=counts)
        adjusted._given_classes = given
        return adjusted

    @cached_property
    def images_checksum(self) -> str:
        """Hex, equal for sets with the same images in the same classes, independent of the order of classes and
        samples, the Unicode form of names and the division into shards. Equal values for different sets are as
        unlikely as a 64-bit collision.
        """
        record = self.index["size"].astype(np.uint64) << np.uint64(32) | self.index["crc32"].astype(np.uint64)
        with np.errstate(over="ignore"):  # splitmix64's finaliser: sums of similar records differ
            record = (record ^ record >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            record = (record ^ record >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            sums = np.zeros(self.num_classes, np.uint64)
            np.add.at(sums, self.labels, record ^ record >> np.uint64(31))
        classes = zip(self.class_names, self.samples_per_class.tolist(), sums.tolist(), strict=True)
        present = sorted((one_form(name), count, total) for name, count, total in classes if count)
        return hashlib.sha256(repr(present).encode("utf-8", "surrogatepass")).hexdigest()

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _reopened, (*self._opening(), self._given_classes)

    def _opening(self) -> tuple[type[ShardSet], tuple[object, ...]]:
        """What another process needs to open this set."""
        return ShardSet, (self.path,)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        counts = self.samples_per_class
        sizes = f", {counts.max():,} … {counts.min():,} per class" if len(counts) else ""
        return (
            f"ShardSet({str(self.path)!r}: {self.info.name} {self.info.split}, {len(self):,} images of "
            f"{self.num_classes:,} classes{sizes})"
        )

    @property
    def num_classes(self) -> int:
        return len(self.info.class_names)

    @property
    def class_names(self) -> list[str]:
        return list(self.info.class_names)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,), copied once from the index, so gathers are contiguous."""
        return self.index["label"].astype(np.int64)

    def encoded(self, sample: int) -> np.ndarray:
        """The encoded image: uint8 (size,), a read-only view into the mapped tar.

        Raises CorruptSampleError if the index points outside the tar.
        """
        record = self.index[sample]
        shard, offset, size = int(record["shard"]), int(record["offset"]), int(record["size"])
        if shard >= len(self._tars) or offset + size > len(self._tars[shard]):
            raise self._corrupt(sample, f"index.npy says {size} bytes at {offset}, which is outside the tar")
        return self._tars[shard][offset : offset + size]

    def check_sample(self, sample: int) -> None:
        """Compare a sample's bytes with the build's checksum. Raises CorruptSampleError."""
        found, expected = zlib.crc32(self.encoded(sample).data), int(self.index["crc32"][sample])
        if found != expected:
            raise self._corrupt(sample, f"crc32 {found:08x} found, {expected:08x} written")

    def will_read(self, sample_ids: np.ndarray) -> None:
        """Announce that these samples will be read soon: the kernel fetches their bytes together, in its own order.

        sample_ids: int64 (n,).
        """
        records = self.index[sample_ids]
        for shard in np.unique(records["shard"]):
            # Opened each time: keeping a descriptor per shard and stream would exceed the usual limit of 1024.
            descriptor = os.open(self.folder / self.info.shards[shard].file, os.O_RDONLY)
            try:
                for record in records[records["shard"] == shard]:
                    os.posix_fadvise(descriptor, int(record["offset"]), int(record["size"]), os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def will_read_all(self) -> None:
        """Announce that all samples will be read in id order; the kernel detects sequential reads itself."""

    def expect(self, next_uses: Callable[[], np.ndarray] | None) -> None:
        """Set how a local copy with a size limit decides which samples to keep; None resets it. No effect for a folder.

        next_uses: returns uint32 (N,), smaller for samples read sooner, the largest value if unknown. Other threads
            call it.
        """

    def source_of(self, sample: int) -> str:
        """The image's original file. Reads sources.txt up to that line: for messages, not for loops."""
        return source_line(self.folder, sample)

    def _corrupt(self, sample: int, fault: str) -> CorruptSampleError:
        shard = f"{self.path}/{shard_file(int(self.index['shard'][sample]))}"
        return CorruptSampleError(shard, int(sample), self.source_of(sample), fault)


def _reopened(kind: type[ShardSet], where: tuple[object, ...], names: tuple[str, ...] | None) -> ShardSet:
    opened = kind(*where)  # type: ignore[arg-type]
    return opened if names is None else opened.with_classes(names, "the training set")


_REBUILD = "the set was changed after it was built: restore the file, or delete the folder and build it again"


def _check_sizes(folder: Path, files: Iterable[FileInfo]) -> None:
    for file in files:
        path = folder / file.file
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found, but dataset.json lists it; {_REBUILD}")
        if path.stat().st_size != file.bytes:
            raise ValueError(f"{path}: {path.stat().st_size} bytes found, {file.bytes} written; {_REBUILD}")


def check_hash(folder: Path, file: FileInfo) -> None:
    """Compare a file of the set with the sha256 in dataset.json. Raises ValueError."""
    found = hash_file(folder / file.file)
    if found != file.sha256:
        raise ValueError(f"{folder / file.file}: sha256 {found} found, {file.sha256} written; {_REBUILD}")


def map_index(folder: Path, info: DatasetInfo) -> np.ndarray:
    """index.npy, mapped: INDEX_DTYPE (N,). Raises ValueError if it is not of that type and length."""
    return _map_array(folder / INDEX_FILE, INDEX_DTYPE, info.num_samples)


def map_by_class(folder: Path, info: DatasetInfo) -> np.ndarray:
    """by_class.npy, mapped: uint32 (C + 1 + N,). Raises ValueError if it is not of that type and length."""
    return _map_array(folder / BY_CLASS_FILE, np.dtype("<u4"), len(info.class_names) + 1 + info.num_samples)


def source_line(folder: Path, sample: int) -> str:
    """A sample's line in sources.txt, or a text that it is missing, because error messages about damage use this."""
    try:
        with (folder / SOURCES_FILE).open(encoding="utf-8", errors="replace") as lines:
            return next(itertools.islice(lines, sample, None), f"not in {SOURCES_FILE}").rstrip("\n")
    except FileNotFoundError:
        return f"{SOURCES_FILE} is missing"


def _map_array(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    header = npy_header(dtype, length)
    with path.open("rb") as file:
        if file.read(len(header)) != header or path.stat().st_size != len(header) + length * dtype.itemsize:
            raise ValueError(f"{path}: is not an array of {length} × {dtype}; {_REBUILD}")
    if length == 0:  # nothing to map
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r", offset=len(header), shape=(length,))


def _map_tar(path: Path) -> np.ndarray:
    """uint8 (bytes,). Each mapping keeps a file descriptor open (Python's mmap duplicates it)."""
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise OutsideError(
            f"{path}: too many open files; raise the limit (ulimit -n) above the number of shards in use"
        ) from error
