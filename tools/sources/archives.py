"""Containers for a data set's images: a folder, a tar (or a tar of tars) or a zip, read in place by seeking.

This module has the common parts, folders, and the detection of file types. Names inside archives are keys for looking
up bytes; they never become file names on disk.
"""

from __future__ import annotations

import logging
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from shards.source import JSON, Fetcher, SampleRef
from tools.sources.member_tree import DEEPEST_FOLDER, Member
from tools.sources.stored import StoredFile

__all__ = ["ArchivePath", "Container", "Folder", "Member", "NameKey", "file_stamp", "plain_name", "same_name", "sniff"]

logger = logging.getLogger(__name__)

_TAR_BLOCK = 512

ArchivePath = Path | StoredFile
# Maps an image's name in a list to its name in the container.
NameKey = Callable[[str], str]

_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_UNREAD = (
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "RAR"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"LZIP", "lzip"),
    (b"\x1f\x9d", "compress (.Z)"),
    (b"070701", "cpio"),
    (b"!<arch>\n", "ar"),
    (b"\x5d\x00\x00", "lzma"),
)


class Container(Protocol):
    """Images by name. Picklable; `open` is called in every worker process."""

    @property
    def path(self) -> ArchivePath: ...

    def members(self) -> Iterator[tuple[str, Member | None]]:
        """All names, with "/" as separator; None for a folder. Raises ValueError for a damaged archive."""
        ...

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        """The members among `names` that exist. Raises ValueError for one that exists but cannot be read."""
        ...

    def open(self) -> Fetcher:
        """A fetcher for the calling process."""
        ...

    def close(self) -> None:
        """Remove scratch files, if there are any."""
        ...


def file_stamp(path: ArchivePath) -> dict[str, dict[str, JSON]]:
    """The entry in `Source.inputs` for a file; none for a folder, whose images are checked individually."""
    if path.is_dir():
        return {}
    if isinstance(path, StoredFile):
        return {path.name: {"bytes": path.info.bytes, "version": path.info.version}}
    status = path.stat()
    return {path.name: {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}}


def bytes_of(path: ArchivePath) -> int:
    """The size of an archive."""
    return path.info.bytes if isinstance(path, StoredFile) else path.stat().st_size


class RandomAccess(Protocol):
    """An opened archive with random access, used by one thread."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to this many bytes; fewer at the end of the archive."""
        ...

    def will_read(self, offset: int, size: int) -> None:
        """Announce that these bytes will be read soon. Never fails."""
        ...

    def close(self) -> None: ...


def random_access(path: ArchivePath) -> RandomAccess:
    """Open an archive for a fetcher."""
    return path.opened() if isinstance(path, StoredFile) else _LocalBytes(os.open(path, os.O_RDONLY))


class _LocalBytes:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def will_read(self, offset: int, size: int) -> None:
        read_ahead(self._descriptor, offset, size)

    def close(self) -> None:
        os.close(self._descriptor)


def same_name(name: str) -> str:
    """The key function for containers that use the same names as the list."""
    return name


def plain_name(name: str) -> str:
    """A member's name as unpacking tools write it: without leading or trailing "/", without "." parts.

    A name that leaves its folder through ".." is returned unchanged.
    """
    if not name.startswith(("/", ".")) and "//" not in name and "/." not in name and not name.endswith("/"):
        return name
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def leads_out(name: str) -> bool:
    """Whether the name contains a ".." part."""
    return ".." in name and ".." in name.split("/")


def locate_by_walking(container: Container, name_by_key: dict[str, str]) -> dict[str, Member]:
    """The members that the keys identify, by name."""
    return {
        name_by_key[name]: member for name, member in container.members() if member is not None and name in name_by_key
    }


def incomplete(path: ArchivePath, kind: str, error: Exception) -> ValueError:
    """The error for a damaged archive."""
    return ValueError(f"{path}: not a complete {kind} ({error}); it is truncated or damaged: download it again")


def not_in_the_archive(ref: SampleRef, path: ArchivePath) -> ValueError:
    """The error for a link that leads nowhere."""
    return ValueError(
        f"{ref.name}: a link to {ref.location!r}, which is not in {path}; pack the files themselves (tar --dereference)"
    )


class Folder:
    """Images unpacked under `path`; members are all files below it. Links are followed."""

    def __init__(self, path: Path, key: NameKey = same_name) -> None:
        self.path, self._key = path, key

    def members(self) -> Iterator[tuple[str, Member | None]]:
        yield from self._walk(self.path, "", ())

    def _walk(
        self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[str, Member | None]]:
        """`above`: device and inode of the parent folders; entering one again would never end."""
        if len(above) > DEEPEST_FOLDER:
            raise ValueError(f"more than {DEEPEST_FOLDER} nested folders: {str(folder)[:200]}…")
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            logger.warning("%s: a link to one of its parent folders; not entered again", folder)
            return
        if prefix:
            yield prefix[:-1], None
        # Sorted: the order of samples must not depend on the file system.
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = f"{prefix}{entry.name}"
            if entry.is_dir():
                yield from self._walk(folder / entry.name, f"{name}/", (*above, here))
            elif (size := _size_of_file(entry)) is not None:
                yield name, Member(name, size)

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        # Only checks the listed files: the unpacked ILSVRC has eleven times as many images as ImageNet-LT.
        found = {}
        for name in names:
            relative = self._key(name)
            path = self.path / relative
            with suppress(OSError):  # such as a name that is too long
                if path.is_file():
                    found[name] = Member(relative, path.stat().st_size)
                elif path.is_symlink() and not path.exists():  # it leads nowhere; fetching reports it
                    found[name] = Member(relative, 0)
        return found

    def open(self) -> Fetcher:
        return _FolderFetcher(self.path)

    def close(self) -> None:
        pass


def _size_of_file(entry: os.DirEntry[str]) -> int | None:
    """Size in bytes; 0 for a link that leads nowhere, which fetching reports; None for pipes, devices and the like."""
    try:
        status = entry.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def read_ahead(descriptor: int, offset: int, size: int) -> None:
    """Have the system read this many bytes in the background, if it can. 0 would mean everything that follows."""
    if hasattr(os, "posix_fadvise"):
        # A file system without this hint, or a damaged archive with sizes beyond the file's end.
        with suppress(OSError, OverflowError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


class _FolderFetcher:
    """Announced files stay open until fetched: opening a file twice takes a third as long as reading it."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._announced: dict[object, BinaryIO] = {}

    def fetch(self, ref: SampleRef) -> bytes:
        with self._announced.pop(ref.location, None) or self._open(ref) as file:
            return file.read()

    def will_fetch(self, ref: SampleRef) -> None:
        with suppress(OSError):
            if ref.location not in self._announced:
                self._announced[ref.location] = file = self._open(ref)
                read_ahead(file.fileno(), 0, 0)

    def close(self) -> None:
        for file in self._announced.values():
            file.close()

    def _open(self, ref: SampleRef) -> BinaryIO:
        # Joining Path objects takes half as long as reading a photograph.
        return open(f"{self._root}/{ref.location}", "rb", buffering=0)  # noqa: PTH123


def sniff(path: ArchivePath) -> str:
    """The type of `path`, by its content: "folder", "tar", "zip", "gzip", "bzip2", "xz" or "zstd".

    Raises FileNotFoundError or ValueError.
    """
    if isinstance(path, Path) and not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; give the path of the images or of their archive")
    if path.is_dir():
        return "folder"
    with path.open("rb") as file:
        head = file.read(_TAR_BLOCK)
        unpacks_itself = zipfile.is_zipfile(file)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    for start, kind in _COMPRESSED:
        if head.startswith(start):
            return kind
    if len(head) == _TAR_BLOCK and has_tar_checksum(head):
        return "tar"
    if unpacks_itself:
        return "zip"
    raise ValueError(_no_container(path, head))


def _no_container(path: ArchivePath, head: bytes) -> str:
    for start, kind in _UNREAD:
        if head.startswith(start):
            return f"{path}: a {kind} archive, which is not supported; unpack it and give the folder"
    web_page = "; a web page, often an error message saved by the download" if head.lstrip().startswith(b"<") else ""
    return (
        f"{path}: not a folder, tar (plain, .gz, .bz2, .xz or .zst) or zip (its first bytes are "
        f"{head[:8]!r}{web_page}); give the original archive, or unpack it and give the folder"
    )


def has_tar_checksum(header: bytes) -> bool:
    """Whether these 512 bytes are the header of a tar member."""
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
