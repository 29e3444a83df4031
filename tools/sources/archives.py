"""Where the images of a data set lie: a folder, a tar (or a tar of tars) or a zip, read in place by seeking.

Names inside archives are keys for looking up bytes; they never become file names on the disk.
"""

from __future__ import annotations

import logging
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from shards.source import JSON, Fetcher, SampleRef

_log = logging.getLogger(__name__)

_TAR_BLOCK = 512
_ZIP_MEMBER_HEADER = 512  # bytes before a member's data: 30, its name, and extra fields, seldom this long

# From the name that a list gives an image to its name in the container.
NameKey = Callable[[str], str]


class Member(NamedTuple):
    """A file of a container: what its fetcher needs, and the encoded size in bytes."""

    location: str | int | tuple[int, int]
    size: int


class Container(Protocol):
    """Images by name. Picklable; `open` is called in every worker process."""

    path: Path

    def members(self) -> Iterator[tuple[str, Member | None]]:
        """All names, with "/" between the parts; None for a folder. Raises ValueError for a damaged archive."""
        ...

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        """Those of `names` that exist."""
        ...

    def open(self) -> Fetcher:
        """A fetcher for the calling process."""
        ...

    def close(self) -> None:
        """Remove scratch files, if there are any."""
        ...


def file_stamp(path: Path) -> dict[str, dict[str, JSON]]:
    """The entry of `Source.inputs` for a file; none for a folder, whose images are checked one by one."""
    if path.is_dir():
        return {}
    status = path.stat()
    return {path.name: {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}}


def same_name(name: str) -> str:
    """The key of a container that names its images as the list does."""
    return name


class Folder:
    """Images unpacked under `path`; members are all files below it."""

    def __init__(self, path: Path, key: NameKey = same_name) -> None:
        self.path, self._key = path, key

    def members(self) -> Iterator[tuple[str, Member | None]]:
        # Sorted, so that the order of the samples does not depend on the file system. Class folders may be links.
        for entry in sorted(self.path.iterdir()):
            if not entry.is_dir():
                yield entry.name, Member(entry.name, entry.stat().st_size)
                continue
            for folder, folders, files in os.walk(entry, onerror=_raise):
                folders.sort()
                inside = Path(folder).relative_to(self.path).as_posix()
                yield inside, None
                for file in sorted(files):
                    yield f"{inside}/{file}", Member(f"{inside}/{file}", (Path(folder) / file).stat().st_size)

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        # Only the listed files are looked at: the unpacked ILSVRC has eleven times the images of ImageNet-LT.
        found = {}
        for name in names:
            relative = self._key(name)
            path = self.path / relative
            if path.is_file():
                found[name] = Member(relative, path.stat().st_size)
        return found

    def open(self) -> Fetcher:
        return _FolderFetcher(self.path)

    def close(self) -> None:
        pass


def _read_ahead(descriptor: int, offset: int, size: int) -> None:
    """Have the system read so many bytes in the background, where it can. 0 would be all that follow."""
    if hasattr(os, "posix_fadvise"):
        # A file system that knows no such hint; a damaged archive with sizes beyond all files.
        with suppress(OSError, OverflowError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def _raise(error: OSError) -> None:
    raise error  # os.walk would leave out a folder that it may not read


class _FolderFetcher:
    """Files announced and not yet fetched stay open: opening a file twice takes a third as long as reading it."""

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
                _read_ahead(file.fileno(), 0, 0)

    def close(self) -> None:
        for file in self._announced.values():
            file.close()

    def _open(self, ref: SampleRef) -> BinaryIO:
        # To join Path objects takes half as long as to read a photograph.
        return open(f"{self._root}/{ref.location}", "rb", buffering=0)  # noqa: PTH123


class Tar:
    """An uncompressed tar, indexed by walking its headers once per question; nothing but the answer is kept in memory.

    nested: the members are tars themselves, one a class, as in ILSVRC2012_img_train.tar; `n01440764.tar` with
        `n01440764_762.JPEG` gives the name `n01440764/n01440764_762.JPEG`.
    """

    def __init__(self, path: Path, key: NameKey = same_name, nested: bool = False) -> None:
        self.path, self._key, self._nested = path, key, nested

    def members(self) -> Iterator[tuple[str, Member | None]]:
        with self.path.open("rb") as file:
            for member in _walk_tar(file, self.path, 0, self.path.stat().st_size):
                if not self._nested:
                    yield _plain_name(member.name), _tar_member(member)
                elif member.isfile():
                    class_name = posixpath.splitext(_plain_name(member.name))[0]
                    yield class_name, None
                    for inner in _walk_tar(file, self.path, member.offset_data, member.offset_data + member.size):
                        yield f"{class_name}/{_plain_name(inner.name)}", _tar_member(inner)

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        return _locate_by_walking(self, {self._key(name): name for name in names})

    def open(self) -> Fetcher:
        return _TarFetcher(self.path)

    def close(self) -> None:
        pass


def _walk_tar(file: BinaryIO, path: Path, start: int, end: int) -> Iterator[tarfile.TarInfo]:
    """The regular files and folders of the tar in bytes [start, end) of `file`; offsets count from the file's start."""
    links = 0
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:  # leaves `file` open
            # tarfile seeks before every header, so that an inner tar can be walked between two members of the outer.
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it remembers all: gigabytes for the larger archives
                if member.isfile() or member.isdir():
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError(f"member {member.name} ends behind the archive")
                    yield member
                links += member.issym() or member.islnk()
            # A damaged header looks like an end to tarfile: only the mark tells that nothing is missing.
            file.seek(tar.offset)
            if tar.offset + _TAR_BLOCK > end or any(file.read(_TAR_BLOCK)):
                raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
    except tarfile.TarError as error:
        raise _incomplete(path, "tar", error) from error
    if links:
        _log.warning("%s: left out %d links, which are not followed; pack the files themselves", path, links)


def _tar_member(member: tarfile.TarInfo) -> Member | None:
    return Member((member.offset_data, member.size), member.size) if member.isfile() else None


class _TarFetcher:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def fetch(self, ref: SampleRef) -> bytes:
        assert isinstance(ref.location, tuple)
        offset, size = ref.location
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise ValueError(f"{ref.name}: {len(data)} of {size} bytes left in {self._path}; was the file truncated?")
        return data

    def will_fetch(self, ref: SampleRef) -> None:
        assert isinstance(ref.location, tuple)
        offset, size = ref.location
        if size:  # an empty member's neighbours are the rest of the archive
            _read_ahead(self._descriptor, offset, size)

    def close(self) -> None:
        os.close(self._descriptor)


class Zip:
    """A zip archive; the location of a member is its position in the archive's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self) -> Iterator[tuple[str, Member | None]]:
        with _open_zip(self.path) as archive:
            for position, info in enumerate(archive.infolist()):
                yield (
                    _plain_name(info.filename),
                    None if info.filename.endswith("/") else Member(position, info.file_size),
                )

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        return _locate_by_walking(self, {name: name for name in names})

    def open(self) -> Fetcher:
        return _ZipFetcher(self.path)

    def close(self) -> None:
        pass


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:  # the latter: made by a later version of the format
        raise _incomplete(path, "zip", error) from error


class _ZipFetcher:
    def __init__(self, path: Path) -> None:
        self._archive = _open_zip(path)
        self._directory = self._archive.infolist()
        assert self._archive.fp is not None
        self._descriptor = self._archive.fp.fileno()

    def fetch(self, ref: SampleRef) -> bytes:
        assert isinstance(ref.location, int)
        try:
            return self._archive.read(self._directory[ref.location])
        # RuntimeError: a password is needed; NotImplementedError, one of its kind: a rare compression. OSError or
        # OverflowError: the archive's directory leads to a place outside of it.
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, OverflowError) as error:
            raise ValueError(f"{ref.name}: cannot be read from {self._archive.filename}: {error}") from error

    def will_fetch(self, ref: SampleRef) -> None:
        assert isinstance(ref.location, int)
        info = self._directory[ref.location]
        _read_ahead(self._descriptor, info.header_offset, info.compress_size + _ZIP_MEMBER_HEADER)

    def close(self) -> None:
        self._archive.close()


def _locate_by_walking(container: Container, name_by_key: dict[str, str]) -> dict[str, Member]:
    return {
        name_by_key[name]: member for name, member in container.members() if member is not None and name in name_by_key
    }


def _plain_name(name: str) -> str:
    """A member's name without the "./" and the closing "/" that some archivers add."""
    return name.removeprefix("./").rstrip("/")


def _incomplete(path: Path, kind: str, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a complete {kind} ({error}); it is truncated or damaged: download it again")


def sniff(path: Path) -> str:
    """What `path` holds: "folder", "tar", "zip" or "gzip", by its content. Raises FileNotFoundError or ValueError."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; give the path of the images or of their archive")
    if path.is_dir():
        return "folder"
    with path.open("rb") as file:
        head = file.read(_TAR_BLOCK)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if len(head) == _TAR_BLOCK and _has_tar_checksum(head):
        return "tar"
    web_page = "; a web page, often an error message saved by the download" if head.lstrip().startswith(b"<") else ""
    raise ValueError(
        f"{path}: neither a folder nor a tar, tar.gz or zip (its first bytes are {head[:8]!r}{web_page}); "
        "give the original archive"
    )


def _has_tar_checksum(header: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
