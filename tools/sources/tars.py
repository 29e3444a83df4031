"""Tars, read in place: GNU, POSIX (pax) and older ones, with sparse members and links."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Collection, Iterator
from typing import BinaryIO, cast

from shards.source import Fetcher, SampleRef
from tools.sources.archives import (
    ArchivePath,
    NameKey,
    bytes_of,
    has_tar_checksum,
    incomplete,
    locate_by_walking,
    not_in_the_archive,
    plain_name,
    random_access,
    same_name,
)
from tools.sources.member_tree import Link, Member, MemberTree, TreeError

_BLOCK = 512
_CHUNK_BYTES = 1 << 20
_MULTI_VOLUME = b"M"


class Tar:
    """An uncompressed tar, indexed by walking its headers once per query; only the answer is kept in memory, unless the
    tar contains links.

    nested: the members are tars themselves, one per class, as in ILSVRC2012_img_train.tar; `n01440764.tar` with
        `n01440764_762.JPEG` gives the name `n01440764/n01440764_762.JPEG`.
    """

    def __init__(self, path: ArchivePath, key: NameKey = same_name, nested: bool = False) -> None:
        self.path, self._key, self._nested = path, key, nested

    def members(self) -> Iterator[tuple[str, Member | None]]:
        with self.path.open("rb") as file:
            end = bytes_of(self.path)
            if not self._nested:
                yield from self.members_of(file, end)
                return
            for member in _walk(file, self.path, 0, end):
                if member.isfile():
                    class_name = posixpath.splitext(_name(member))[0]
                    yield class_name, None
                    for inner in _walk(file, self.path, member.offset_data, member.offset_data + member.size):
                        if inner.isfile():
                            yield f"{class_name}/{_name(inner)}", _member(inner)

    def members_of(self, file: BinaryIO, end: int) -> Iterator[tuple[str, Member | None]]:
        """The members of the tar in `file`, which must be readable from its start, up to byte `end`."""
        links = 0
        for member in _walk(file, self.path, 0, end):
            if member.issym() or member.islnk():
                links += 1
            elif not links and (name := _name(member)):  # "" is the packed folder itself
                yield name, _member(member) if member.isfile() else None
        if links:  # yields everything from the start again, as it is after unpacking
            try:
                yield from self._tree(_walk(file, self.path, 0, end)).walk()
            except TreeError as error:
                raise ValueError(f"{self.path}: {error}; unpack it and give the folder") from error

    def _tree(self, members: Iterator[tarfile.TarInfo]) -> MemberTree:
        tree = MemberTree()
        for member in members:
            name = _name(member)
            if name and member.islnk():
                tree.add_hard_link(name, plain_name(member.linkname))
            elif name:
                file = _member(member) if member.isfile() else None
                tree.add(name, Link(member.linkname) if member.issym() else file)
        return tree

    def locate(self, names: Collection[str]) -> dict[str, Member]:
        return locate_by_walking(self, {self._key(name): name for name in names})

    def open(self) -> Fetcher:
        return _TarFetcher(self.path)

    def close(self) -> None:
        pass


def _name(member: tarfile.TarInfo) -> str:
    """For sparse members in pax format, GNU tar stores the name separately; a long "path" next to it is made up."""
    return plain_name(member.pax_headers.get("GNU.sparse.name", member.name))


def _walk(file: BinaryIO, path: ArchivePath, start: int, end: int) -> Iterator[tarfile.TarInfo]:
    """Files, folders and links of the tar in bytes [start, end) of `file`; offsets are from the file's start."""
    file.seek(start)
    try:
        # Bytes in a name that are not UTF-8 are decoded as Python decodes file names on disk.
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            # tarfile seeks before every header, so an inner tar can be walked between two members of the outer one.
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all members: gigabytes for the larger archives
                if member.isfile() or member.isdir() or member.issym() or member.islnk():
                    if member.offset_data + _stored_bytes(member) > end:
                        raise tarfile.ReadError(f"member {member.name!r} ends beyond the archive")
                    yield member
                elif member.type == _MULTI_VOLUME:
                    raise tarfile.ReadError("a multi-volume archive; unpack the volumes together and give the folder")
            _check_end(file, tar.offset, end)
    except tarfile.TarError as error:
        raise incomplete(path, "tar", error) from error
    except _SecondArchiveError as error:
        raise ValueError(f"{path}: {error}") from error


class _SecondArchiveError(ValueError):
    pass


def _check_end(file: BinaryIO, offset: int, end: int) -> None:
    """A damaged header looks like the end to tarfile: only the end marker proves that nothing is missing."""
    file.seek(offset)
    if offset + _BLOCK > end or any(file.read(_BLOCK)):
        raise tarfile.ReadError(f"no end marker at byte {offset}")
    while (position := file.tell()) < end:
        chunk = file.read(min(_CHUNK_BYTES, end - position))
        if not chunk:
            return
        if any(chunk):
            at = position + (len(chunk) - len(chunk.lstrip(b"\0"))) // _BLOCK * _BLOCK
            file.seek(at)
            if has_tar_checksum(file.read(_BLOCK)):
                raise _SecondArchiveError(
                    f"several archives in one file: a second one begins at byte {at}, which most tools would not "
                    "unpack; unpack it with `tar --ignore-zeros -xf` and give the folder"
                )
            return  # other bytes after the end, which unpacking tools ignore


def _stored_bytes(member: tarfile.TarInfo) -> int:
    if not member.isfile():
        return 0
    sparse = _data_parts(member)
    return member.size if sparse is None else sum(size for _, size in sparse)


def _data_parts(member: tarfile.TarInfo) -> list[tuple[int, int]] | None:
    """For a sparse member: offset in the file and size of each stored part. Otherwise None."""
    return cast("list[tuple[int, int]] | None", member.sparse)


def _member(member: tarfile.TarInfo) -> Member:
    parts = _data_parts(member)
    if parts is None:
        return Member((member.offset_data, member.size), member.size)
    return Member((member.offset_data, member.size, *(number for part in parts for number in part)), member.size)


class _TarFetcher:
    """Locations are (offset, size), followed for sparse members by offset and size of each part in the file."""

    def __init__(self, path: ArchivePath) -> None:
        self._path = path
        self._archive = random_access(path)

    def fetch(self, ref: SampleRef) -> bytes:
        if not isinstance(ref.location, tuple):
            raise not_in_the_archive(ref, self._path)
        offset, size, *parts = ref.location
        if not parts and len(ref.location) == 2:
            return self._read(ref, offset, size)
        data = bytearray(size)
        for at, length in zip(parts[::2], parts[1::2], strict=True):
            if at < 0 or at + length > size:
                raise ValueError(f"{ref.name}: its parts do not match its size; {self._path} is damaged")
            data[at : at + length] = self._read(ref, offset, length)
            offset += length
        return bytes(data)

    def _read(self, ref: SampleRef, offset: int, size: int) -> bytes:
        data = self._archive.read_at(offset, size)
        if len(data) != size:
            raise ValueError(f"{ref.name}: {len(data)} of {size} bytes left in {self._path}; was the file truncated?")
        return data

    def will_fetch(self, ref: SampleRef) -> None:
        if isinstance(ref.location, tuple) and ref.location[1]:  # a size of 0 would read ahead the whole rest
            self._archive.will_read(*ref.location[:2])

    def close(self) -> None:
        self._archive.close()
