"""Checking a whole shard set for consistency: every byte by checksum, every sample by tar, index and .idx."""

from __future__ import annotations

import itertools
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from shards.files import hash_file
from shards.format import (
    BY_CLASS_FILE,
    DATASET_FILE,
    INDEX_FILE,
    SOURCES_FILE,
    DatasetInfo,
    FileInfo,
    by_class_array,
    read_dataset_info,
    shard_index_file,
)
from shards.object_store import Bucket, is_url
from shards.reader import map_by_class, map_index, source_line
from shards.writer import dali_index, dali_index_line

_MAX_FAULTS_PER_SHARD = 10  # otherwise a damaged tar would name all of its samples


def verify_shards(location: Path | str) -> Iterator[str]:
    """Yield one line per fault of the set in a folder or at a URL; none if it is as it was built.

    Checks the shared files first, then single samples, reads each tar twice, and never raises for a damaged set. For a
    set in a store, one tar at a time is downloaded into a temporary folder. Raises StoreError if the store does not
    respond.
    """
    if not is_url(location):
        yield from _verify(_Folder(Path(location)))
        return
    with tempfile.TemporaryDirectory(prefix="verify-shards-") as scratch:
        for fault in _verify(_Download(Path(scratch), Bucket(str(location)))):
            yield fault.replace(scratch, str(location))


class _Folder:
    """The files of a local set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def holding(self, *names: str) -> Iterator[None]:
        """Inside the block these files are in `folder`, if the set has them at all."""
        yield


class _Download(_Folder):
    """The files of a remote set, each downloaded while it is checked."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        super().__init__(folder)
        self._bucket = bucket

    @contextmanager
    def holding(self, *names: str) -> Iterator[None]:
        try:
            for name in names:
                with suppress(FileNotFoundError):
                    self._bucket.download(name, self.folder / name)
            yield
        finally:
            for name in names:
                (self.folder / name).unlink(missing_ok=True)


def _verify(files: _Folder) -> Iterator[str]:
    folder = files.folder
    with files.holding(DATASET_FILE, INDEX_FILE, BY_CLASS_FILE, SOURCES_FILE):
        try:
            info = read_dataset_info(folder)
        except (OSError, ValueError) as error:
            yield str(error)
            return
        for file in info.files:
            yield from _file_faults(folder, file)
        try:
            index, by_class = map_index(folder, info), map_by_class(folder, info)
        except (OSError, ValueError) as error:
            yield str(error)
            return
        yield from _index_faults(folder, info, index, by_class)
        first_sample = 0
        for number, shard in enumerate(info.shards):
            path, idx = folder / shard.file, folder / shard_index_file(number)
            with files.holding(path.name, idx.name):
                yield from _file_faults(folder, shard)
                if path.is_file():
                    records = index[first_sample : first_sample + shard.samples]
                    faults = _shard_faults(path, idx, records, first_sample)
                    yield from itertools.islice(faults, _MAX_FAULTS_PER_SHARD)
            first_sample += shard.samples


def _file_faults(folder: Path, file: FileInfo) -> Iterator[str]:
    path = folder / file.file
    if not path.is_file():
        yield f"{path}: not found, but dataset.json lists it"
    elif (found := path.stat().st_size) != file.bytes:
        yield f"{path}: {found} bytes found, {file.bytes} written"
    elif (digest := hash_file(path)) != file.sha256:
        yield f"{path}: sha256 {digest} found, {file.sha256} written"


def _index_faults(folder: Path, info: DatasetInfo, index: np.ndarray, by_class: np.ndarray) -> Iterator[str]:
    path, labels, num_classes = folder / INDEX_FILE, index["label"], len(info.class_names)
    if len(labels) and labels.max() >= num_classes:
        yield f"{path}: label {labels.max()} found, but there are {num_classes} classes"
        return
    counts = np.bincount(labels, minlength=num_classes)
    if not np.array_equal(counts, info.samples_per_class):
        label = np.flatnonzero(counts != info.samples_per_class)[0]
        yield f"{path}: {counts[label]} samples of class {label} found, {info.samples_per_class[label]} in dataset.json"
    if not np.array_equal(by_class, by_class_array(labels, num_classes)):
        yield f"{folder}: by_class.npy does not list the samples of index.npy by class"
    shards = np.repeat(np.arange(len(info.shards)), [shard.samples for shard in info.shards])
    if not np.array_equal(index["shard"], shards):
        yield f"{path}: the samples are not in the order of their shards"


def _shard_faults(tar: Path, idx: Path, records: np.ndarray, first_sample: int) -> Iterator[str]:
    """Compare the members of a tar with the records of its samples, INDEX_DTYPE (samples,), and with its .idx."""
    lines: list[str] = []
    try:
        for number, (image, label, data, text) in enumerate(_members(tar)):
            lines.append(dali_index_line(image.name, image.offset_data, image.size, label.offset_data, label.size))
            fault = _sample_fault(image, data, text, records[number]) if number < len(records) else ""
            if fault:
                sample = first_sample + number
                yield f"{tar}: sample {sample} ({image.name}, {source_line(tar.parent, sample)}): {fault}"
    # tarfile raises the last three for nonsensical headers
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        yield f"{tar}: not readable as a tar after {len(lines)} samples: {error}"
        return
    if len(lines) != len(records):
        yield f"{tar}: {len(lines)} samples found, {len(records)} in the index"
    if not idx.is_file():
        yield f"{idx}: not found"
    elif idx.read_bytes() != dali_index(lines):
        yield f"{idx}: does not describe {tar.name}"


def _sample_fault(image: tarfile.TarInfo, data: bytes, label_text: bytes, record: np.void) -> str:
    if (image.offset_data, image.size) != (record["offset"], record["size"]):
        found, listed = f"{image.size} bytes at {image.offset_data}", f"{record['size']} bytes at {record['offset']}"
        return f"{found} found, {listed} in the index"
    if (crc32 := zlib.crc32(data)) != record["crc32"]:
        return f"crc32 {crc32:08x} found, {record['crc32']:08x} written"
    if label_text != b"%d" % record["label"]:
        return f"label {label_text!r} found, {record['label']} in the index"
    return ""


def _members(tar: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo, bytes, bytes]]:
    """The samples of a tar: image member, label member, and their contents."""
    with tarfile.open(tar, "r:") as archive:
        members = iter(archive)
        for image in members:
            label = next(members, None)
            if label is None:
                raise tarfile.ReadError(f"{image.name} has no label after it")
            yield image, label, _content(archive, image), _content(archive, label)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise tarfile.ReadError(f"{member.name} is not a regular file")
    return file.read()
