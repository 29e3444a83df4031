"""A shard set in a store: the index is downloaded at once, images by range requests as planned, and kept locally."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from shards.files import atomic_file, hash_file, write_atomically
from shards.format import DATASET_FILE, SOURCES_FILE, DatasetInfo, FileInfo, shard_file
from shards.local_copy import CacheOptions, LocalCopy, alone_in, block_around, copy_folder
from shards.object_store import Bucket, Patience, StoreError
from shards.reader import HASHED_INDEX_BYTES, ShardSet, source_line

logger = logging.getLogger(__name__)

_IN_FLIGHT = 64  # requests that a process keeps open: at 50 ms each, 1,280 per second
_LONGEST_READ = 2**20  # neighbours are fetched with one request up to this size
_PIECE, _PIECES = 8 * 2**20, 16  # bytes of an index file per request, and requests at a time
_SAME_FAULT = 3  # this many identical wrong responses are not a network error: the object itself is wrong


class RemoteShardSet(ShardSet):
    """A shard set at a URL. Picklable: another process opens the same URL with the same cache.

    bucket: where it is read; `bucket.traffic` has the statistics. copy: the part kept on this machine.
    """

    samples_ahead = 2048

    def __init__(self, url: str, cache: CacheOptions | None = None, patience: Patience | None = None) -> None:
        self.bucket = Bucket(url, patience)
        self.path = self.bucket.url
        self._cache = cache or CacheOptions()
        text = _read_twice(self.bucket, DATASET_FILE)
        self.info: DatasetInfo = DatasetInfo.from_json(_decoded(text, self.bucket), self.bucket.url_of(DATASET_FILE))
        self.folder = copy_folder(self._cache, self.bucket.url, text)
        self._check_listing()
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="store-read")
        self._fetch_index(text)
        self._map_index()
        self.copy = LocalCopy(self.folder, self.info, self.index, self._cache.limit_bytes)
        # Whether the copy may have to be evicted: otherwise nothing is recorded, and the zeros take no memory.
        self._notes_reads = sum(shard.bytes for shard in self.info.shards) > self.copy.limit_bytes // 2
        self._reads = 0
        self._read_at = np.zeros(len(self), np.uint32)  # the number of a sample's last read; 0 before the first
        self._next_uses: Callable[[], np.ndarray] | None = None
        self._pending: dict[int, Future[None]] = {}
        self._pending_lock = threading.RLock()  # a read may finish before its callback is set
        self._failure: StoreError | None = None

    def _opening(self) -> tuple[type[ShardSet], tuple[object, ...]]:
        return RemoteShardSet, (self.bucket.url, self._cache, self.bucket.patience)

    def encoded(self, sample: int) -> np.ndarray:
        """The encoded image: uint8 (size,), read-only, with its checksum compared.

        Raises StoreError if the store does not respond or the object was replaced, CorruptSampleError if the object
        persistently holds bytes other than those the build wrote.
        """
        data = self.copy.read(sample)
        if data is None and not self.copy.full:
            self.will_read(np.array([sample]))  # also fetches its neighbours
            if (pending := self._pending.get(sample)) is not None:
                pending.result()  # raises any error
            data = self.copy.read(sample)
        if data is None:
            data = self._fetch_one(sample)
        if self._notes_reads:
            self._reads += 1  # two threads may get the same number: it is only used for ordering
            self._read_at[sample] = self._reads
        return np.frombuffer(data, np.uint8)

    def check_sample(self, sample: int) -> None:
        """Fetch the sample if it is not local, and compare its checksum. Raises as `encoded` does."""
        self.encoded(sample)

    def will_read(self, sample_ids: np.ndarray) -> None:
        """Start fetching those of these samples that are not local yet; returns at once."""
        if self._notes_reads:
            self._read_at[sample_ids] = 0  # never evict these
        with self._pending_lock:  # anything no longer pending is present or damaged
            absent = np.unique(sample_ids[self.copy.present[sample_ids] == 0])
            for first, stop in self._stretches(s for s in absent.tolist() if s not in self._pending):
                future = self._pool.submit(self._fetch, first, stop)
                samples = range(first, stop)
                self._pending.update(dict.fromkeys(samples, future))
                future.add_done_callback(partial(self._done, samples))

    def will_read_all(self) -> None:
        """Start fetching the whole set, if the cache has room for it."""
        if sum(shard.bytes for shard in self.info.shards) <= self.copy.limit_bytes:
            self.will_read(np.arange(len(self)))

    def expect(self, next_uses: Callable[[], np.ndarray] | None) -> None:
        self._next_uses = next_uses

    def source_of(self, sample: int) -> str:
        """The image's original file. Downloads sources.txt once."""
        file = self.info.files[2]
        try:
            if not (self.folder / SOURCES_FILE).is_file():
                self._download(file)
        except (StoreError, OSError) as error:  # the caller is building a message about a worse error
            return f"unknown: {error}"
        return source_line(self.folder, sample)

    # ------------------------------------------------------------------ fetching

    def _stretches(self, samples: Iterable[int]) -> list[tuple[int, int]]:
        """Ranges (first, last + 1) of neighbours, one request each, that contain these ascending ids."""
        stretches: list[tuple[int, int]] = []
        for sample in samples:
            if stretches and sample < stretches[-1][1]:
                continue
            # Where room is short, neighbours that nobody asked for would push out what is needed.
            first, stop = (sample, sample + 1) if self.copy.is_cut else block_around(self.index, sample)
            if stretches and first == stretches[-1][1] and self._fits_one_read(stretches[-1][0], stop):
                stretches[-1] = (stretches[-1][0], stop)
            else:
                stretches.append((first, stop))
        return stretches

    def _fits_one_read(self, first: int, stop: int) -> bool:
        one_shard = self.index["shard"][first] == self.index["shard"][stop - 1]
        start, end = self._extent(first, stop)
        return bool(one_shard) and end - start <= _LONGEST_READ

    def _extent(self, first: int, stop: int) -> tuple[int, int]:
        """Start and end byte of these neighbours in their tar."""
        last = self.index[stop - 1]
        return int(self.index["offset"][first]), int(last["offset"]) + int(last["size"])

    def _fetch(self, first: int, stop: int) -> None:
        """Fetch neighbours and store them. A sample that repeatedly arrives wrong stays absent: see `_fetch_one`."""
        start, end = self._extent(first, stop)
        if self._failure is not None:
            raise self._failure  # the run is failing: do not wait a minute for each of thousands
        if not threading.main_thread().is_alive():
            return  # the interpreter is waiting for this thread to finish
        for _ in range(_SAME_FAULT):
            try:
                data = self.bucket.read(self._shard_of(first), start, end)
            except StoreError as error:
                self._failure = error
                raise
            good = self._good(first, stop, data)
            if good.all():
                self._keep(first, stop, data)
                return
            for sample in (first + np.flatnonzero(good)).tolist():  # wrong bytes must not overwrite correct ones
                at, end_of = self._extent(sample, sample + 1)
                self._keep(sample, sample + 1, data[at - start : end_of - start])

    def _good(self, first: int, stop: int, data: bytes) -> np.ndarray:
        """bool (samples,): which of these neighbours have the right checksum in the bytes fetched for them."""
        records = self.index[first:stop]
        positions = (records["offset"] - records["offset"][0]).tolist()
        pieces = zip(positions, records["size"].tolist(), records["crc32"].tolist(), strict=True)
        view = memoryview(data)
        return np.array([zlib.crc32(view[at : at + size]) == crc32 for at, size, crc32 in pieces])

    def _fetch_one(self, sample: int) -> bytes:
        """Fetch and store one sample directly from the store, with retries."""
        start, end = self._extent(sample, sample + 1)
        name, expected = self._shard_of(sample), int(self.index["crc32"][sample])
        faults: list[int] = []
        for pause in (*self.bucket.patience.pauses(), 0.0):
            data = self.bucket.read(name, start, end)
            if (found := zlib.crc32(data)) == expected:
                self._keep(sample, sample + 1, data)
                return data
            faults.append(found)
            if self.bucket.changed(name):
                break
            if faults.count(found) == _SAME_FAULT:
                raise self._corrupt(sample, f"crc32 {found:08x} found in the store, {expected:08x} written")
            time.sleep(pause)
        where = f"{self.bucket.url_of(name)}, bytes {start} to {end} (sample {sample})"
        if self.bucket.changed(name):
            raise StoreError(f"{where}: the object was replaced while it was in use; restore it, then resume")
        raise StoreError(f"{where}: {len(faults)} responses with different wrong checksums; the connection is faulty")

    def _keep(self, first: int, stop: int, data: bytes) -> None:
        self.copy.write(first, stop, data)
        if self.copy.over_limit():
            self.copy.make_room(self._needed)

    def _done(self, samples: range, _: Future[None]) -> None:
        with self._pending_lock:
            for sample in samples:
                self._pending.pop(sample, None)

    def _shard_of(self, sample: int) -> str:
        return shard_file(int(self.index["shard"][sample]))

    def _needed(self) -> np.ndarray:
        """int64 (N,), larger for samples needed later: as expected, or by a rule where that is unknown.

        The rule: an epoch uses each sample once, in a new order when training, in the same order when evaluating. So
        samples read longest ago, or never, are needed first. Samples just read are still on their way to the decoder.
        """
        read_at = self._read_at.astype(np.int64)
        by_rule = np.where(self._reads - read_at < self.samples_ahead, 0, read_at)
        if (next_uses := self._next_uses) is None:
            return by_rule
        expected = next_uses()
        unknown = np.iinfo(expected.dtype).max
        return np.where(expected < unknown, expected, unknown + by_rule)

    # ------------------------------------------------------------------- opening

    def _check_listing(self) -> None:
        """Compare sizes before anything expensive starts, if the store can list.

        A listing has no checksum, so an error counts only if a second listing confirms it.
        """
        if not self.bucket.lists:
            return
        faults: list[Exception] = []
        while len(faults) < _SAME_FAULT:
            fault = self._listed_fault()
            if fault is None:
                return
            faults.append(fault)
        raise faults[-1]

    def _listed_fault(self) -> Exception | None:
        found = self.bucket.listing()
        for file in (*self.info.shards, *self.info.files):
            where = self.bucket.url_of(file.file)
            if file.file not in found:
                return FileNotFoundError(f"{where}: not in the store, but dataset.json lists it; upload it again")
            if (size := found[file.file].bytes) != file.bytes:
                return ValueError(f"{where}: {size} bytes in the store, {file.bytes} written; upload it again")
        return None

    def _fetch_index(self, dataset_json: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(self.folder):  # only one of the ranks downloads
            for file in self.info.files[:2]:
                if not self._has(file):
                    self._download(file)
            write_atomically(self.folder / DATASET_FILE, dataset_json)

    def _has(self, file: FileInfo) -> bool:
        path = self.folder / file.file
        if not path.is_file() or path.stat().st_size != file.bytes:
            return False
        return file.bytes > HASHED_INDEX_BYTES or hash_file(path) == file.sha256

    def _download(self, file: FileInfo) -> None:
        """Download a file of the set into the local copy and compare its sha256."""
        path = self.folder / file.file
        faults: list[str] = []
        while len(faults) < self.bucket.patience.attempts and (not faults or faults.count(faults[-1]) < _SAME_FAULT):
            self._download_once(file)
            if (found := hash_file(path)) == file.sha256:
                return
            path.unlink()
            faults.append(found)
        url = self.bucket.url_of(file.file)
        raise StoreError(f"{url}: sha256 {faults[-1]} found, {file.sha256} written; upload the set again")

    def _download_once(self, file: FileInfo) -> None:
        with atomic_file(self.folder / file.file) as out:
            for some in range(0, file.bytes, _PIECE * _PIECES):  # not all at once: they are held in memory
                starts = range(some, min(some + _PIECE * _PIECES, file.bytes), _PIECE)
                for piece in self._pool.map(partial(self._piece, file), starts):
                    out.write(piece)

    def _piece(self, file: FileInfo, start: int) -> bytes:
        return self.bucket.read(file.file, start, min(start + _PIECE, file.bytes))


def _read_twice(bucket: Bucket, name: str) -> bytes:
    """A small object without a checksum, read until two responses agree."""
    answers: list[bytes] = []
    for _ in range(_SAME_FAULT + 1):
        try:
            answer = bucket.read(name)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{bucket.url_of(name)}: not found, so there is no complete shard set at this URL; "
                "run the command that builds it (again): python -m tools.build_shards"
            ) from error
        if answer in answers:
            return answer
        answers.append(answer)
    raise StoreError(f"{bucket.url_of(name)}: {len(answers)} responses, all different; the connection is faulty")


def _decoded(text: bytes, bucket: Bucket) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{bucket.url_of(DATASET_FILE)}: not UTF-8 ({error}); upload the set again") from error
