"""An archive in an object store, read by range, with the few methods of `Path` that archive readers use."""

from __future__ import annotations

import io
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from shards.commandline import home_path
from shards.object_store import Bucket, ObjectInfo, StoreError, is_url

_PIECE = 4 * 2**20  # bytes per request when the archive is read sequentially
_PIECES_AHEAD = 8  # at a time, once three neighbours were requested: at 50 ms, 640 MB/s
_PIECES_KEPT = 2 * _PIECES_AHEAD
_STRETCHES_KEPT = 64  # announced images, in flight or received
_IN_FLIGHT = 32


class StoredFile:
    """An object at a URL. Picklable: opening it elsewhere refuses a different version of the object.

    name: the last part of the URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url

    @cached_property
    def info(self) -> ObjectInfo:
        """Size and version of the object, as first seen. Raises StoreError; FileNotFoundError: absent."""
        return self._bucket().info(self.name)

    def is_dir(self) -> bool:
        """Never: folders of images in a bucket are not supported."""
        return False

    def open(self, _: str = "rb") -> BinaryIO:
        """The object as an opened file."""
        return cast("BinaryIO", self.opened())

    def opened(self) -> StoredBytes:
        """The same, with random access."""
        return StoredBytes(self._bucket(), self.name, self.info)

    def _bucket(self) -> Bucket:
        return Bucket(self.url.rsplit("/", 1)[0])


class StoredBytes(io.RawIOBase):
    """An opened object, used by one thread. Sequential reads are fetched ahead in large pieces; announced bytes are
    fetched with one request each.
    """

    def __init__(self, bucket: Bucket, name: str, info: ObjectInfo) -> None:
        self.name = bucket.url_of(name)
        self._bucket, self._object, self._size = bucket, name, info.bytes
        bucket.note_version(name, info.version)
        self._position = 0
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="archive-read")
        self._pieces: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._last_piece, self._in_a_row = -2, 0
        self._stretches: OrderedDict[int, tuple[int, Future[bytes]]] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(f"{self.name}: byte {start + offset} requested; the archive is damaged")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        data = self.read_at(self._position, self._size if size is None or size < 0 else size)
        self._position += len(data)
        return data

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to this many bytes; fewer at the end of the object. Raises StoreError."""
        stop = min(offset + size, self._size)
        if stop <= offset:
            return b""
        for start, (end, future) in self._stretches.items():
            if start <= offset and stop <= end:
                return future.result()[offset - start : stop - start]
        pieces = range(offset // _PIECE, -(-stop // _PIECE))
        whole = b"".join([self._piece(number) for number in pieces])
        return whole[offset - pieces.start * _PIECE : stop - pieces.start * _PIECE]

    def will_read(self, offset: int, size: int) -> None:
        """Start fetching these bytes."""
        if 0 < size <= _PIECE and 0 <= offset < self._size and offset not in self._stretches:
            end = min(offset + size, self._size)
            self._stretches[offset] = end, self._pool.submit(self._fetch, offset, end)
            if len(self._stretches) > _STRETCHES_KEPT:
                self._stretches.popitem(last=False)

    def forget(self) -> None:
        """From now on, fetch all requested bytes again."""
        self._pieces.clear()
        self._stretches.clear()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _piece(self, number: int) -> bytes:
        if number != self._last_piece:
            self._in_a_row = self._in_a_row + 1 if number == self._last_piece + 1 else 0
            self._last_piece = number
        # A header is sometimes read in two pieces, and then its content is skipped.
        ahead = _PIECES_AHEAD if self._in_a_row > 1 else 0
        for each in range(number, number + 1 + ahead):
            start, end = each * _PIECE, min((each + 1) * _PIECE, self._size)
            if start < end and each not in self._pieces:
                self._pieces[each] = self._pool.submit(self._fetch, start, end)
        while len(self._pieces) > _PIECES_KEPT:
            self._pieces.popitem(last=False)
        return self._pieces[number].result()

    def _fetch(self, start: int, stop: int) -> bytes:
        try:
            data = self._bucket.read(self._object, start, stop)
        except FileNotFoundError as error:  # it would suggest that a single image is missing
            raise StoreError(
                f"{self.name}: is no longer in the store; restore it, and run the command again"
            ) from error
        if self._bucket.changed(self._object):
            raise StoreError(f"{self.name}: was replaced while it was read; delete what was built of it, build again")
        return data


def images_location(text: str) -> Path | StoredFile:
    """The value of --images: a folder or an archive, or an archive's URL. For command lines."""
    return StoredFile(text) if is_url(text) else home_path(text)
