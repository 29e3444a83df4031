"""A tar.gz has no random access: it is unpacked once, as one uncompressed tar, into a scratch folder."""

from __future__ import annotations

import gzip
import logging
import shutil
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO

from shards.files import atomic_file, remove_temporary_files
from shards.source import Fetcher
from tools.sources.archives import Container, Folder, Member, Tar, Zip, sniff

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 16 << 20
# A gzip file does not tell its uncompressed size. Photographs hardly compress: a tar of JPEGs shrinks by one or two
# percent, and 10 % more than the archive is enough.
_EXPECTED_GROWTH = 1.1


class SpooledTar:
    """The tar inside a .tar.gz, spooled into the folder `scratch` when a question about its members is first asked.

    Sources of one command share the object, and close it after all of them are built. A complete spool survives an
    interrupted build and is found again; its name carries the archive's size and time, so that a replaced archive is
    spooled anew.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        status = path.stat()
        stem = path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
        self.path = path
        self._spool = scratch / f"{stem}-{status.st_size}-{status.st_mtime_ns}.tar"
        self._tar = Tar(self._spool)

    def members(self) -> Iterator[tuple[str, Member | None]]:
        self._fill()
        yield from self._tar.members()

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        self._fill()
        return self._tar.locate(names)

    def open(self) -> Fetcher:
        return self._tar.open()

    def close(self) -> None:
        self._spool.unlink(missing_ok=True)
        with suppress(OSError):  # never made, closed before, or another archive's spool lies there
            self._spool.parent.rmdir()

    def _fill(self) -> None:
        if self._spool.exists():
            return
        scratch = self._spool.parent
        scratch.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(scratch)
        needed, free = int(self.path.stat().st_size * _EXPECTED_GROWTH), shutil.disk_usage(scratch).free
        if free < needed:
            raise OSError(
                f"{scratch}: {free / 1e9:.1f} GB free, but unpacking {self.path.name} for random access takes about "
                f"{needed / 1e9:.1f} GB (removed after the build); make room, give an --out on a larger disk, or give "
                "--images the folder of the unpacked archive"
            )
        _log.info("unpacking %s once into %s (%.1f GB)", self.path, self._spool, needed / 1e9)
        try:
            with self.path.open("rb") as file, atomic_file(self._spool) as spool:
                _unpack(file, spool, self.path.stat().st_size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{self.path}: truncated or damaged ({error}); download it again") from error
        except OSError as error:
            raise OSError(f"{scratch}: unpacking {self.path.name} failed, its remains are removed: {error}") from error


def _unpack(file: BinaryIO, spool: IO[bytes], compressed_bytes: int) -> None:
    """Decompresses `file` into `spool`; a line every tenth, because the largest archives take half an hour."""
    reported = 0
    with gzip.GzipFile(fileobj=file) as unpacked:
        while chunk := unpacked.read(_CHUNK_BYTES):
            spool.write(chunk)
            tenths = 10 * file.tell() // compressed_bytes
            if tenths > reported:
                reported = tenths
                _log.info("unpacked %d %%", 10 * tenths)


def container_of(path: Path, scratch: Path) -> Container:
    """The container at `path`, by its content. The folder `scratch` is only made for a tar.gz."""
    match sniff(path):
        case "folder":
            return Folder(path)
        case "zip":
            return Zip(path)
        case "tar":
            return Tar(path)
        case _:
            return SpooledTar(path, scratch)


def scratch_folder(out: Path) -> Path:
    """Where the archives of a build to `out` are spooled: beside it, on the disk that is meant for large files."""
    return out.parent / f".{out.name}-scratch"
