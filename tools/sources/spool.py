"""Compressed tars (.gz, .bz2, .xz, .zst) have no random access: each is unpacked once, as one plain tar, into a
scratch folder that belongs to the build.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import shutil
import sys
import zlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from shards.files import OutsideError, atomic_file, exclusive_lock, remove_temporary_files
from shards.format import DATASET_FILE
from shards.source import Fetcher
from tools.sources.archives import (
    ArchivePath,
    Container,
    Folder,
    Member,
    bytes_of,
    file_stamp,
    locate_by_walking,
    sniff,
)
from tools.sources.tars import Tar
from tools.sources.zips import Zip

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 16 << 20
# Exceptions from decompressing damaged bytes; zstandard's own error shares no base class with these.
_DAMAGE: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)
_SUFFIXES = (".gz", ".tgz", ".bz2", ".tbz2", ".tbz", ".xz", ".txz", ".zst", ".tzst", ".tar")
# A gzip file does not record its uncompressed size. Photographs hardly compress: a tar of JPEGs shrinks by one or two
# percent, so 10 % more than the archive is enough.
_EXPECTED_GROWTH = 1.1


class SpooledTar:
    """The tar inside a compressed one, spooled into the folder `scratch` on first use.

    kind: "gzip", "bzip2", "xz" or "zstd".
    only_names: probably only names will be needed, because the set is finished: they are read from the compressed
        archive, and nothing is unpacked until a fetcher is opened.

    The sources of one command share the object and close it once all of them are built. Until then the scratch folder
    is locked against other builds. A complete spool survives an interrupted or refused build and is reused; its name
    contains the archive's size and time, so a replaced archive is spooled again.
    """

    def __init__(self, path: ArchivePath, scratch: Path, kind: str = "gzip", only_names: bool = False) -> None:
        self.path = path
        self._only_names = only_names
        self._kind = kind
        self._spool = scratch / f"{archive_stem(path.name)}-{_mark(path)}.tar"
        self._is_copy = False
        self._tar = Tar(self._spool)
        self._lock: AbstractContextManager[None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_is_copy": True}  # the lock stays with the build's process

    def members(self) -> Iterator[tuple[str, Member | None]]:
        if not self._only_names or self._spool.exists():
            self._fill()
            yield from self._tar.members()
            return
        logger.info("reading the names in %s without unpacking", self.path)
        try:
            with self.path.open("rb") as file, self._opened(file) as stream:
                # Offsets refer to the spool. A list, because a damaged archive must be refused before anything is used.
                members = list(Tar(self.path).members_of(stream, sys.maxsize))
        except (*_DAMAGE, *_zstd_errors()) as error:
            raise self._damaged(error) from error
        yield from members

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        return locate_by_walking(self, {name: name for name in names})

    def open(self) -> Fetcher:
        if not self._is_copy:
            self._fill()
        elif not self._spool.exists():
            raise OutsideError(
                f"{self._spool}: not on this machine, which runs a part of the build: the machine that started it "
                f"has unpacked {self.path.name} there; give a plain tar, a zip or a folder, or an --out that all mount"
            )
        return self._tar.open()

    def close(self) -> None:
        self._spool.unlink(missing_ok=True)
        with suppress(OSError):  # never created, already closed, or another archive's spool is there
            self._spool.parent.rmdir()
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None

    def _fill(self) -> None:
        scratch = self._spool.parent
        if self._lock is None:
            scratch.mkdir(parents=True, exist_ok=True)
            self._lock = exclusive_lock(
                scratch, f"{scratch}: another build is unpacking its archive there; wait for it or stop it"
            )
            self._lock.__enter__()
        if self._spool.exists():
            return
        for path in scratch.glob("*.tar"):  # spools of archives that have been replaced: nothing would use them again
            path.unlink()
        remove_temporary_files(scratch)
        self._check_space(scratch)
        logger.info("unpacking %s once into %s", self.path, self._spool)
        try:
            with self.path.open("rb") as file, atomic_file(self._spool) as spool:
                _unpack(self._opened(file), file, spool, bytes_of(self.path))
        except (*_DAMAGE, *_zstd_errors()) as error:
            raise self._damaged(error) from error
        except OSError as error:
            if error.errno is None:  # how bz2 reports damaged data
                raise self._damaged(error) from error
            raise OSError(
                f"{scratch}: unpacking {self.path.name} failed, the partial file was removed: {error}"
            ) from error
        if sniff_tar(self._spool):
            return
        self._spool.unlink()
        raise ValueError(f"{self.path}: no tar inside; unpack it and give the folder")

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"{self.path}: truncated or damaged ({error}); download it again")

    def _check_space(self, scratch: Path) -> None:
        needed, free = int(bytes_of(self.path) * _EXPECTED_GROWTH), shutil.disk_usage(scratch).free
        if free < needed:
            raise OSError(
                f"{scratch}: {free / 1e9:.1f} GB free, but unpacking {self.path.name} for random access takes about "
                f"{needed / 1e9:.1f} GB (removed after the build); make room, give an --out on a larger disk, or give "
                "--images the folder of the unpacked archive"
            )

    def _opened(self, file: BinaryIO) -> Any:
        """Decompresses `file`, including several concatenated streams."""
        match self._kind:
            case "gzip":
                return gzip.GzipFile(fileobj=file)
            case "bzip2":
                return bz2.BZ2File(file)
            case "xz":
                return lzma.LZMAFile(file)
            case _:
                return _zstandard(self.path).ZstdDecompressor().stream_reader(file, read_across_frames=True)


def _mark(path: ArchivePath) -> str:
    """Distinguishes archives of the same name, as part of a file name."""
    (stamp,) = file_stamp(path).values()
    return "-".join("".join(filter(str.isalnum, str(value))) for value in stamp.values())


def archive_stem(name: str) -> str:
    """The file name of an archive without its suffixes."""
    for _ in range(2):
        suffix = next((suffix for suffix in (*_SUFFIXES, ".zip") if name.lower().endswith(suffix)), "")
        name = name[: len(name) - len(suffix)] or name
    return name


def sniff_tar(path: Path) -> bool:
    """Whether a spool is a tar."""
    try:
        return sniff(path) == "tar"
    except ValueError:
        return False


def _zstandard(path: ArchivePath) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise ValueError(
            f"{path}: compressed with Zstandard, which needs the package zstandard (the extra `zstd`: "
            "pip install 'longtail[zstd]'); or unpack it and give the folder"
        ) from error
    return zstandard


def _zstd_errors() -> tuple[type[Exception], ...]:
    try:
        import zstandard
    except ImportError:
        return ()
    return (zstandard.ZstdError,)


def _unpack(unpacked: Any, file: BinaryIO, spool: IO[bytes], compressed_bytes: int) -> None:
    """Decompress `file` into `spool`; logs every tenth, because the largest archives take half an hour."""
    reported = 0
    with unpacked:
        while chunk := unpacked.read(_CHUNK_BYTES):
            spool.write(chunk)
            tenths = 10 * file.tell() // compressed_bytes if not file.closed else 10
            if tenths > reported:
                reported = tenths
                logger.info("unpacked %d %%", 10 * tenths)


def container_of(path: ArchivePath, out: Path) -> Container:
    """The container at `path`, recognised by content, for a build to `out`."""
    match sniff(path):
        case "folder":
            assert isinstance(path, Path)
            return Folder(path)
        case "zip":
            return Zip(path)
        case "tar":
            return Tar(path)
        case kind:
            finished = any(True for pattern in ("", "*/") for _ in out.glob(f"{pattern}{DATASET_FILE}"))
            return SpooledTar(path, scratch_folder(out), kind, only_names=finished)


def scratch_folder(out: Path) -> Path:
    """The spool folder of a build to `out`: next to it, on the disk meant for large files."""
    return out.parent / f".{out.name}-scratch"


def scratch_left(out: Path) -> list[Path]:
    """Spools that a build to `out` has left for the next run of the same command."""
    return sorted(scratch_folder(out).glob("*.tar"))
