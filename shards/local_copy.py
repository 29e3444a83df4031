"""The local copy of a set that lies in a store: sparse tars, a map of what is in them, a limit to its size.

    CACHE/imagenet-lt-train-3f0c…/   one folder a set; the name ends in a hash of its URL and its dataset.json
        dataset.json, index.npy, by_class.npy   whole
        000000.tar, …                           as in the store, with holes
        present.map                             one byte per sample: 1 where its bytes are in the tar
        lock                                    held by every process that has the set open

All processes of a machine share the copy, and any of them may be killed at any time. No protocol between them is
relied upon for correctness: whoever reads a sample compares its bytes with the checksum of the build, each time, and a
copy that does not fit is fetched again. So a map that is ahead of the disk after a power cut, or a hole that another
process made a moment ago, costs a request and nothing else.
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
# Samples that begin in the same 64 KiB of a tar are fetched and evicted together: below that size a request costs its
# latency and its price, not its bytes, and a file system frees whole blocks only.
BLOCK_BYTES = 64 * 2**10
_KEPT_FREE = 0.1  # share of the free disk that the default limit leaves to others
_EVICTED_TO = 15 / 16  # of the limit, so that evicting happens now and then, not with each write
_LOOKED_AT = 1 / 64  # of the limit: how much a process writes before it looks at the size again
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h

_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)  # the os module does not have it


def default_cache_folder() -> Path:
    """Where the user's caches are: XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longtail"


@dataclass(frozen=True)
class CacheOptions:
    """Where local copies are kept.

    folder: of all sets. limit_bytes: what they may take together; by default nine tenths of what is free on that disk.
    """

    folder: Path = field(default_factory=default_cache_folder)
    limit_bytes: int | None = None


def copy_folder(cache: CacheOptions, url: str, dataset_json: bytes) -> Path:
    """The folder of a set's copy. Another version of the set has another folder."""
    digest = hashlib.sha256(url.encode() + b"\0" + dataset_json).hexdigest()
    tail = "-".join(url.split("://", 1)[-1].split("/")[-2:])
    readable = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in tail)
    return cache.folder / f"{readable[:60]}-{digest[:16]}"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside of such a block for this folder."""
    with (folder / f"{LOCK_FILE}.first").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class LocalCopy:
    """The copy of one set, opened. Threads and processes may share it.

    full: whether something did not fit on the disk.
    index: INDEX_DTYPE (N,). present: uint8 (N,), mapped and shared: whether the bytes of a sample should be there.
    """

    def __init__(self, folder: Path, info: DatasetInfo, index: np.ndarray, limit_bytes: int | None) -> None:
        self.folder, self.index = folder, index
        self._num_shards = len(info.shards)
        self._lock = (folder / LOCK_FILE).open("a")
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # until this process ends: nobody removes the folder
        os.utime(folder / LOCK_FILE)
        self.present = _map_of(folder / MAP_FILE, len(index))
        free = shutil.disk_usage(folder).free + _disk_bytes(folder)
        self.limit_bytes = limit_bytes or int(free * (1 - _KEPT_FREE))
        self._written = self.limit_bytes  # look once at the beginning
        self.full = False

    def read(self, sample: int) -> bytes | None:
        """The bytes of a sample as they were built, or None where they are not (or no longer) here."""
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
        """Keep a stretch of a tar that holds the samples from `first` up to `stop`, as they were built.

        A disk that is full is no error: the set is then read from the store.
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
        """Whether it is time to call `make_room`: cheap, for after each write."""
        return self._written > self.limit_bytes * _LOOKED_AT

    def make_room(self, next_use: Callable[[], np.ndarray]) -> None:
        """Evict until the cache is below its limit: first sets that nobody has open, then what is needed last.

        next_use: gives int64 (N,): a larger number is needed later. Asked only if it matters.
        """
        with (self.folder.parent / "evicting").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another process is at it
            self._written = 0
            excess = cache_bytes(self.folder.parent) - self.limit_bytes
            if excess <= 0:
                return
            excess += int(self.limit_bytes * (1 - _EVICTED_TO))
            excess -= _remove_unused_sets(self.folder, excess)
            if excess > 0:
                self._evict(next_use(), excess)

    def _evict(self, next_use: np.ndarray, excess: int) -> None:
        present = np.flatnonzero(self.present)
        blocks = block_of(self.index[present])
        starts = np.flatnonzero(np.append(True, blocks[1:] != blocks[:-1]))
        soonest = np.minimum.reduceat(next_use[present], starts)
        ends = np.append(starts[1:], len(present))
        for block in np.argsort(-soonest, kind="stable"):
            if excess <= 0:
                return
            excess -= self._punch(present[starts[block] : ends[block]])

    def _punch(self, samples: np.ndarray) -> int:
        """Free what these neighbours take on the disk, and say how much that is."""
        first, last = self.index[samples[0]], self.index[samples[-1]]
        start, stop = int(first["offset"]), int(last["offset"]) + int(last["size"])
        self.present[samples] = 0  # first, so that a reader in between seldom finds the hole
        try:
            descriptor = os.open(self._path(int(first["shard"])), os.O_RDWR)
        except FileNotFoundError:
            return 0
        try:
            _free_bytes(descriptor, start, stop - start)
        finally:
            os.close(descriptor)
        return stop - start

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
    """Which samples are fetched and evicted together: a number per block, ascending with the ids."""
    return (records["shard"].astype(np.int64) << 40) | (records["offset"] // BLOCK_BYTES).astype(np.int64)


def cache_bytes(cache_folder: Path) -> int:
    """What all sets take on the disk; holes do not count."""
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
    """Remove copies that no process has open, the one opened longest ago first. Returns the bytes freed."""
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
            logger.info("%s: removed, to keep the cache below its limit", lock.parent)
            shutil.rmtree(lock.parent, ignore_errors=True)
    return freed


def _map_of(path: Path, length: int) -> np.ndarray:
    with path.open("ab"):
        os.truncate(path, length)  # grows with zeros: nothing is there
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
    "the cache is full, and its file system cannot free parts of a file; give the cache a folder on a local disk "
    "(ext4, xfs, btrfs, tmpfs) with --data.cache, or a limit above the size of the sets"
)
