"""Zips, read in place, with the names that unpacking tools produce."""

from __future__ import annotations

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator

from shards.object_store import StoreError
from shards.source import Fetcher, SampleRef
from tools.sources.archives import (
    ArchivePath,
    incomplete,
    locate_by_walking,
    not_in_the_archive,
    plain_name,
    read_ahead,
)
from tools.sources.member_tree import Link, Member, MemberTree, TreeError
from tools.sources.stored import StoredBytes, StoredFile

_MEMBER_HEADER = 512  # bytes before a member's data: 30, its name, and extra fields, rarely this long
_LONGEST_LINK = 4096
_TRIES = 3
_ENCRYPTED, _NAME_IS_UTF8 = 0x1, 0x800  # flag bits
_UNIX, _MACOS = 3, 19  # "made by", APPNOTE 4.4.2
_UNICODE_PATH = 0x7075  # extra field, APPNOTE 4.6.9
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_METHOD_NAMES = {9: "Deflate64", 93: "Zstandard", 95: "xz", 98: "PPMd", 99: "AES encryption"}

_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
# RuntimeError: a password is needed; NotImplementedError, a subclass: a rare compression method. The others: the
# archive's directory points outside the file.
_READ_ERRORS = (*_DAMAGE, RuntimeError, OSError, OverflowError, ValueError)


class Zip:
    """A zip archive; the location of a member is its position in the archive's directory."""

    def __init__(self, path: ArchivePath) -> None:
        self.path = path

    def members(self) -> Iterator[tuple[str, Member | None]]:
        with _opened(self.path) as archive:
            infos = archive.infolist()
            _refuse_a_second_archive(self.path, infos)
            if any(_is_link(info) for info in infos):
                try:
                    yield from self._tree(archive).walk()
                except TreeError as error:
                    raise ValueError(f"{self.path}: {error}; unpack it and give the folder") from error
                return
            for position, info in enumerate(infos):
                if name := plain_name(member_name(info)):
                    yield name, _member(position, info)

    def _tree(self, archive: zipfile.ZipFile) -> MemberTree:
        tree = MemberTree()
        for position, info in enumerate(archive.infolist()):
            if name := plain_name(member_name(info)):
                tree.add(name, _link(archive, info) if _is_link(info) else _member(position, info))
        return tree

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        found = locate_by_walking(self, {name: name for name in names})
        with _opened(self.path) as archive:
            infos = archive.infolist()
            for name, member in found.items():
                if isinstance(member.location, int):
                    _check_readable(self.path, name, infos[member.location])
        return found

    def open(self) -> Fetcher:
        return _ZipFetcher(self.path)

    def close(self) -> None:
        pass


def member_name(info: zipfile.ZipInfo) -> str:
    """The name that unpacking tools give a member, with "/" as separator.

    Names are UTF-8 if a flag or an extra field marks them so. Otherwise they are the file system's bytes if written on
    Unix or macOS, else in the DOS code page.
    """
    name = info.orig_filename.partition("\0")[0]
    if not info.flag_bits & _NAME_IS_UTF8 and not name.isascii():
        raw = name.encode("cp437")  # zipfile decoded it this way
        unicode = _unicode_path(info.extra, raw)
        if unicode is not None:
            name = unicode
        elif info.create_system in (_UNIX, _MACOS) or _is_utf8(raw):
            name = raw.decode("utf-8", "surrogateescape")
    if "/" not in name and info.create_system not in (_UNIX, _MACOS):
        name = name.replace("\\", "/")  # written by .NET programs before 4.6.1
    return name


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        content = extra[at + 4 : at + 4 + size]
        if kind == _UNICODE_PATH and size >= 5 and content[1:5] == zlib.crc32(raw).to_bytes(4, "little"):
            return content[5:].decode("utf-8", "surrogateescape")
        at += 4 + size
    return None


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _member(position: int, info: zipfile.ZipInfo) -> Member | None:
    return None if member_name(info).endswith("/") else Member(position, info.file_size)


def _is_link(info: zipfile.ZipInfo) -> bool:
    return info.create_system in (_UNIX, _MACOS) and stat.S_ISLNK(info.external_attr >> 16)


def _link(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Link:
    if info.file_size > _LONGEST_LINK:
        raise TreeError(f"the link {info.filename!r} has a target of {info.file_size} bytes")
    try:
        return Link(archive.read(info).decode("utf-8", "surrogateescape"))
    except _READ_ERRORS as error:
        raise TreeError(f"the link {info.filename!r} cannot be read: {error}") from error


def _refuse_a_second_archive(path: ArchivePath, infos: list[zipfile.ZipInfo]) -> None:
    """If several zips are concatenated, only the last one's directory is read."""
    first = min((info.header_offset for info in infos), default=0)
    if first > 0:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise ValueError(
                    f"{path}: several archives in one file: the last one begins at byte {first}; unpack them one by "
                    "one and give the folder"
                )


def _check_readable(path: ArchivePath, name: str, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{path}: {name} is encrypted; unpack it with its password and give the folder")
    if info.compress_type not in _METHODS:
        method = _METHOD_NAMES.get(info.compress_type, f"method {info.compress_type}")
        raise ValueError(
            f"{path}: {name} is compressed with {method}, which is not supported; unpack it (7z can) and give "
            "the folder"
        )


def _opened(path: ArchivePath) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path.open() if isinstance(path, StoredFile) else path)
    except (zipfile.BadZipFile, NotImplementedError) as error:  # NotImplementedError: a later version of the format
        raise incomplete(path, "zip", error) from error


class _ZipFetcher:
    def __init__(self, path: ArchivePath) -> None:
        self._path = path
        self._archive = _opened(path)
        self._directory = self._archive.infolist()

    def fetch(self, ref: SampleRef) -> bytes:
        if not isinstance(ref.location, int):
            raise not_in_the_archive(ref, self._path)
        try:
            return self._read(self._directory[ref.location])
        except StoreError:  # no fault of this image
            raise
        except _READ_ERRORS as error:
            raise ValueError(f"{ref.name}: cannot be read from {self._path}: {error}") from error

    def _read(self, info: zipfile.ZipInfo) -> bytes:
        """A member; from a store it is fetched again if its checksum is wrong."""
        for _ in range(_TRIES - 1 if isinstance(self._archive.fp, StoredBytes) else 0):
            try:
                return self._archive.read(info)
            except _DAMAGE:
                assert isinstance(self._archive.fp, StoredBytes)
                self._archive.fp.forget()
        return self._archive.read(info)

    def will_fetch(self, ref: SampleRef) -> None:
        if isinstance(ref.location, int):
            info = self._directory[ref.location]
            size = info.compress_size + _MEMBER_HEADER
            if isinstance(self._archive.fp, StoredBytes):
                self._archive.fp.will_read(info.header_offset, size)
            elif self._archive.fp is not None:
                read_ahead(self._archive.fp.fileno(), info.header_offset, size)

    def close(self) -> None:
        file = self._archive.fp
        self._archive.close()
        if file is not None:
            file.close()
