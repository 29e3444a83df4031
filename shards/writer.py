"""Writing one shard: a plain USTAR tar and its DALI index, complete or absent.

The tar holds two members per sample, the image and its label, with fixed metadata, so equal samples give equal bytes.
Everything is written once, with one system call per sample, and hashed on the way.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from shards.files import start_write_back, sync_folder, temporary_name, write_all, write_atomically
from shards.format import INDEX_DTYPE, TAR_BLOCK, ShardInfo, sample_key, shard_file, shard_index_file

_MAX_MEMBER_BYTES = 2**32 - 1  # u4 in the index
_MAX_NAME_BYTES, _MAX_USTAR_BYTES = 100, 8**11 - 1
_DALI_INDEX_VERSION = "v1.2"
_END_OF_ARCHIVE = bytes(2 * TAR_BLOCK)
# After this many bytes the disk starts writing while this process continues hashing. With only an fsync at the end, all
# workers would wait for the disk, because their shards finish at about the same time: a third of a build's time.
_WRITE_BACK_BYTES = 8 * 2**20


# The constant fields around a member's own: mode 0644, owner and group 0; time 0; an empty link, "ustar".
_OWNER_FIELDS = b"0000644\x000000000\x000000000\x00"
_TIME_FIELD = b"00000000000\x00"
_LAST_FIELDS = (bytes(100) + b"ustar\x0000").ljust(TAR_BLOCK - 157, b"\x00")
# The constant part of the checksum, in which the checksum's own eight bytes count as spaces.
_COMMON_SUM = sum(_OWNER_FIELDS + b"\x00" + _TIME_FIELD + b" " * 8 + b"0" + _LAST_FIELDS)


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes that precede a regular file in a USTAR archive (POSIX.1-1988): mode 0644, owner 0, time 0.

    Raises ValueError for a name that is not ASCII or longer than 100 characters, and for 8 GiB or more.
    """
    if len(name) > _MAX_NAME_BYTES or size > _MAX_USTAR_BYTES:
        raise ValueError(
            f"tar member {name!r} of {size} bytes; a USTAR header holds {_MAX_NAME_BYTES} characters and 8 GiB - 1 byte"
        )
    name_field, size_field = name.encode("ascii").ljust(_MAX_NAME_BYTES, b"\x00"), b"%011o" % size
    # Sums only what differs: a fifth of the time of summing 512 bytes, and a shard has two headers per sample.
    checksum = _COMMON_SUM + sum(name_field) + sum(size_field)
    return b"%b%b%b\x00%b%06o\x00 0%b" % (name_field, _OWNER_FIELDS, size_field, _TIME_FIELD, checksum, _LAST_FIELDS)


def padding(size: int) -> bytes:
    """The zero bytes that fill the last block of a member of `size` bytes."""
    return bytes(-size % TAR_BLOCK)


def dali_index_line(image_name: str, image_at: int, image_bytes: int, label_at: int, label_bytes: int) -> str:
    """A sample in DALI's webdataset index: extension, offset, size and name of each of its two members."""
    key, extension = image_name.rsplit(".", 1)
    return f"{extension} {image_at} {image_bytes} {image_name} cls {label_at} {label_bytes} {key}.cls\n"


def dali_index(lines: list[str]) -> bytes:
    """DALI's webdataset index of a shard, as written by wds2idx. (DALI refuses an index without samples, so do not pass
    it a shard whose images were all skipped.)
    """
    return f"{_DALI_INDEX_VERSION} {len(lines)}\n{''.join(lines)}".encode("ascii")


class ShardWriter:
    """Writes one shard of a set; use as a context manager, call `add` per sample, then `finish`.

    Until `finish` the tar has a temporary name; leaving the context without calling it removes that file.
    """

    def __init__(self, folder: Path, shard: int) -> None:
        self.shard = shard
        self._tar_path = folder / shard_file(shard)
        self._idx_path = folder / shard_index_file(shard)
        self._tar_temporary = temporary_name(self._tar_path)
        self._records: list[tuple[int, ...]] = []
        self._index_lines: list[str] = []
        self._offset = self._write_back_from = 0
        self._sha256 = hashlib.sha256()
        self._file = self._tar_temporary.open("xb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            self._tar_temporary.unlink()

    def add(self, position: int, data: bytes, extension: str, label: int, width: int, height: int) -> None:
        """Append a sample.

        position: the sample's position in the shuffled order, which gives its key.
        data: the encoded image; extension: "jpg" or "png"; width, height: in pixels, at most 65535.
        """
        if len(data) > _MAX_MEMBER_BYTES:
            raise ValueError(f"sample {position}: {len(data)} bytes; an image must be smaller than 4 GiB")
        key, text = sample_key(position), b"%d" % label
        image_name, label_name = f"{key}.{extension}", f"{key}.cls"
        image_at = self._offset + TAR_BLOCK
        between = padding(len(data)) + tar_header(label_name, len(text))
        label_at = image_at + len(data) + len(between)
        self._write(tar_header(image_name, len(data)), data, between + text + padding(len(text)))
        self._records.append((self.shard, image_at, len(data), label, width, height, zlib.crc32(data)))
        self._index_lines.append(dali_index_line(image_name, image_at, len(data), label_at, len(text)))

    def finish(self) -> tuple[ShardInfo, np.ndarray]:
        """Complete the archive and give both files their final names, durably.

        Returns the shard's entry of dataset.json and its records, INDEX_DTYPE (samples,).
        """
        self._write(_END_OF_ARCHIVE)
        os.fsync(self._file.fileno())
        self._file.close()
        write_atomically(self._idx_path, dali_index(self._index_lines))
        self._tar_temporary.replace(self._tar_path)
        sync_folder(self._tar_path.parent)
        info = ShardInfo(self._tar_path.name, self._offset, self._sha256.hexdigest(), len(self._records))
        return info, np.array(self._records, INDEX_DTYPE)

    def _write(self, *parts: bytes) -> None:
        write_all(self._file.fileno(), parts)
        for part in parts:
            self._sha256.update(part)
            self._offset += len(part)
        if (size := self._offset - self._write_back_from) >= _WRITE_BACK_BYTES:
            start_write_back(self._file.fileno(), self._write_back_from, size)
            self._write_back_from = self._offset
