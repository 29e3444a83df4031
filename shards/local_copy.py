"""The local copy of a set in a store: sparse tars, a map of their contents, and a size limit.

    CACHE/imagenet-lt-train-3f0c…/   one folder per set; the name ends in a hash of its URL and its dataset.json
        dataset.json, index.npy, by_class.npy   whole
        000000.tar, …                           as in the store, with holes
        present.map                             one byte per sample: 1 where its bytes are in the tar
        lock                                    held by every process that has the set open

All processes on a machine share the copy, and any of them may be killed at any time. Correctness does not depend on a
protocol between them: every read of a sample compares its bytes with the build's checksum, and a copy that does not
match is fetched again. So a map that is ahead of the disk after a power cut, or a hole that another process has just
made, costs a request and nothing else.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.format import DatasetInfo, shard_file

logger = logging.getLogger(__name__)

MAP_FILE, LOCK_FILE = "present.map", "lock"
# Samples that start in the same 64 KiB of a tar are fetched and evicted together: below that size the cost of a request
# is its latency and price, not its bytes, and a file system frees only whole blocks.
BLOCK_BYTES = 64 * 2**10
_DISK_BLOCK = 4096
_KEPT_FREE = 0.1  # share of the free disk space that the default limit leaves free
_EVICTED_TO = 15 / 16  # of the limit; below 1, so eviction does not happen with every write
_LOOKED_AT = 1 / 64  # of the limit: how much a process writes before it checks the size again
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h

_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)  # missing in the os module


def default_cache_folder() -> Path:
    """The user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longtail"


@dataclass(frozen=True)
class CacheOptions:
    """Where local copies are kept.

    folder: for all sets. limit_bytes: their total size limit; by default nine tenths of the free space on that disk.
    """

    folder: Path = field(default_factory=default_cache_folder)
    limit_bytes: int | None = None


def copy_folder(cache: CacheOptions, url: str, dataset_json: bytes) -> Path:
    """The folder of a set's copy. Each version of the set has its own folder."""
    digest = hashlib.sha256(url.encode() + b"\0" + dataset_json).hexdigest()
    tail = "-".join(url.split("://", 1)[-1].split("/")[-2:])
    readable = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in tail)
    return cache.folder / f"{readable[:60]}-{digest[:16]}"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside such a block for this folder."""
    with (folder / f"{LOCK_FILE}.first").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class LocalCopy:
    """The copy of one set, opened. Threads and processes may share it.

    full: whether something did not fit on the disk. is_cut: whether samples of this set were evicted.
    index: INDEX_DTYPE (N,). present: uint8 (N,), mapped and shared: whether a sample's bytes should be there.
    """

    def __init__(self, folder: Path, info: DatasetInfo, index: np.ndarray, limit_bytes: int | None) -> None:
        self.folder, self.index = folder, index
        self._num_shards = len(info.shards)
        self._lock = (folder / LOCK_FILE).open("a")
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # held until this process ends, so nobody removes the folder
        os.utime(folder / LOCK_FILE)
        self.present = _map_of(folder / MAP_FILE, len(index))
        free = shutil.disk_usage(folder).free + _disk_bytes(folder)
        self.limit_bytes = limit_bytes or int(free * (1 - _KEPT_FREE))
        self._written = self.limit_bytes  # check once at the start
        self.full = self.is_cut = False

    def read(self, sample: int) -> bytes | None:
        """The bytes of a sample as built, or None if they are not (or no longer) here."""
        if not self.present[sample]:
            return None
        record = self.index[sample]
        try:
            descriptor = os.open(self._path(int(record["shard"])), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            data = os.pread(descriptor, int(record["size"]), int(record["offset"]))
        finally:
            os.close(descriptor)
        if zlib.crc32(data) != int(record["crc32"]):
            self.present[sample] = 0
            return None
        return data

    def write(self, first: int, stop: int, data: bytes) -> None:
        """Store the part of a tar that holds the samples from `first` up to `stop`, as built.

        A full disk is not an error: the set is then read from the store.
        """
        record = self.index[first]
        try:
            descriptor = os.open(self._path(int(record["shard"])), os.O_RDWR | os.O_CREAT, 0o644)
            try:
                written = os.pwrite(descriptor, data, int(record["offset"]))
            finally:
                os.close(descriptor)
        except OSError as error:
            self._cannot_write(error)
            return
        if written == len(data):
            self.present[first:stop] = 1
        self._written += written

    def over_limit(self) -> bool:
        """Whether to call `make_room` now. Cheap enough to call after each write."""
        return self._written > self.limit_bytes * _LOOKED_AT

    def make_room(self, next_use: Callable[[], np.ndarray]) -> None:
        """Evict until the cache is below its limit: first sets that nobody has open, then the samples needed last.

        next_use: returns int64 (N,), larger for samples needed later. Called only if it matters.
        """
        with (self.folder.parent / "evicting").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another process is evicting
            self._written = 0
            excess = cache_bytes(self.folder.parent) - self.limit_bytes
            if excess <= 0:
                return
            excess += int(self.limit_bytes * (1 - _EVICTED_TO))
            excess -= _remove_unused_sets(self.folder, excess)
            if excess > 0:
                self._evict(next_use(), excess)

    def _evict(self, next_use: np.ndarray, excess: int) -> None:
        self.is_cut = True
        present = np.flatnonzero(np.array(self.present))  # a copy: others change it meanwhile
        if not present.size:  # the index files alone may be above the limit
            return
        blocks = block_of(self.index[present])
        starts = np.flatnonzero(np.append(True, blocks[1:] != blocks[:-1]))
        soonest = np.minimum.reduceat(next_use[present], starts)
        ends = np.append(starts[1:], len(present))
        for block in np.argsort(-soonest, kind="stable"):
            if excess <= 0:
                return
            self._punch(*block_around(self.index, present[starts[block]]))
            excess -= self._taken(present[starts[block] : ends[block]])

    def _taken(self, samples: np.ndarray) -> int:
        """About how many bytes these samples of a block take on the disk: whole blocks of it, shared by neighbours."""
        sizes = self.index["size"][samples].astype(np.int64)
        extent = int(self.index["offset"][samples[-1]] - self.index["offset"][samples[0]] + sizes[-1])
        return min(extent, int((-(-sizes // _DISK_BLOCK) * _DISK_BLOCK).sum()))

    def _punch(self, first: int, stop: int) -> None:
        """Free the disk space of the samples from `first` up to `stop`, a whole block: parts of a disk block stay."""
        records = self.index[[first, stop - 1]]
        start, end = int(records["offset"][0]), int(records["offset"][1]) + int(records["size"][1])
        self.present[first:stop] = 0  # first, so that a reader in between seldom finds the hole
        try:
            descriptor = os.open(self._path(int(records["shard"][0])), os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            _free_bytes(descriptor, start, end - start)
        finally:
            os.close(descriptor)

    def _cannot_write(self, error: OSError) -> None:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EROFS):
            raise error
        self._written = self.limit_bytes  # make room at the next opportunity
        if not self.full:
            logger.warning("%s: %s; what does not fit is read from the store again", self.folder, error.strerror)
        self.full = True

    def _path(self, shard: int) -> Path:
        return self.folder / shard_file(shard)


def block_of(records: np.ndarray) -> np.ndarray:
    """Block numbers of samples, ascending with the ids; a block is fetched and evicted as a whole."""
    return (records["shard"].astype(np.int64) << 40) | (records["offset"] // BLOCK_BYTES).astype(np.int64)


def block_around(index: np.ndarray, sample: int) -> tuple[int, int]:
    """The neighbours that are fetched and evicted together with a sample: the first, and the last + 1."""
    first, stop = sample, sample + 1
    own = block_of(index[sample])
    while first > 0 and block_of(index[first - 1]) == own:
        first -= 1
    while stop < len(index) and block_of(index[stop]) == own:
        stop += 1
    return first, stop


def cache_bytes(cache_folder: Path) -> int:
    """The disk space that all sets use; holes do not count."""
    return sum(_disk_bytes(folder) for folder in cache_folder.iterdir() if folder.is_dir())


def _disk_bytes(folder: Path) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += entry.stat().st_blocks * 512
            except FileNotFoundError:  # a temporary file of another process
                continue
    return total


def _remove_unused_sets(own: Path, excess: int) -> int:
    """Remove copies that no process has open, least recently opened first. Returns the bytes freed."""
    locks = [lock for lock in own.parent.glob(f"*/{LOCK_FILE}") if lock.parent != own]
    freed = 0
    for lock in sorted(locks, key=lambda path: path.stat().st_mtime):
        if freed >= excess:
            break
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            freed += _disk_bytes(lock.parent)
            logger.info("%s: removed to keep the cache below its limit", lock.parent)
            shutil.rmtree(lock.parent, ignore_errors=True)
    return freed


def _map_of(path: Path, length: int) -> np.ndarray:
    with path.open("ab"):
        os.truncate(path, length)  # extended with zeros: nothing is present
    return np.memmap(path, np.uint8, "r+", shape=(length,)) if length else np.zeros(0, np.uint8)


def _free_bytes(descriptor: int, start: int, size: int) -> None:
    if _fallocate is None:
        raise RuntimeError(_NO_HOLES)
    mode, position, length = _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(start), ctypes.c_int64(size)
    if _fallocate(descriptor, mode, position, length):
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise RuntimeError(_NO_HOLES)
        raise OSError(number, os.strerror(number))


_NO_HOLES = (
    "the cache is full, and its file system cannot free parts of a file; put the cache on a local disk "
    "(ext4, xfs, btrfs, tmpfs) with --data.cache, or a limit above the size of the sets"
)
