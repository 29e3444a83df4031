"""A shard is a plain tar with DALI's index, complete or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards.files
import shards.writer
from shards.files import start_write_back, write_all
from shards.format import INDEX_DTYPE
from shards.writer import ShardWriter, tar_header

SAMPLES = [(b"x" * 700, "jpg", 3), (b"y" * 512, "png", 12), (b"z", "jpg", 0)]


def write_shard(folder: Path) -> tuple[shards.format.ShardInfo, object]:
    with ShardWriter(folder, 7) as writer:
        for position, (data, extension, label) in enumerate(SAMPLES, start=40):
            writer.add(position, data, extension, label, width=position, height=9)
        return writer.finish()


@given(st.integers(0, 99_999_999), st.integers(0, 8**11 - 1))
def test_tar_header_equals_the_one_of_the_standard_library(number: int, size: int) -> None:
    member = tarfile.TarInfo(f"{number:09d}.jpg")
    member.size = size
    found = tarfile.TarInfo.frombuf(tar_header(member.name, size), "ascii", "strict")  # checks the checksum
    assert {**found.get_info(), "chksum": 0} == {**member.get_info(), "chksum": 0}


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("a.jpg", 8**11)])
def test_what_a_header_cannot_hold_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="a USTAR header holds 100 characters"):
        tar_header(name, size)


def test_members_read_back_with_fixed_metadata(tmp_path: Path) -> None:
    write_shard(tmp_path)
    with tarfile.open(tmp_path / "000007.tar") as archive:
        members = archive.getmembers()
        contents = [archive.extractfile(member).read() for member in members]
    names = [f"{40 + i:09d}.{e}" for i, (_, extension, _) in enumerate(SAMPLES) for e in (extension, "cls")]
    assert [member.name for member in members] == names
    assert contents == [part for data, _, label in SAMPLES for part in (data, str(label).encode())]
    assert {(m.mode, m.uid, m.gid, m.mtime, m.uname, m.gname) for m in members} == {(0o644, 0, 0, 0, "", "")}


def test_info_and_records_describe_the_file(tmp_path: Path) -> None:
    info, records = write_shard(tmp_path)
    tar = (tmp_path / "000007.tar").read_bytes()
    assert (info.file, info.bytes, info.samples) == ("000007.tar", len(tar), 3)
    assert info.sha256 == hashlib.sha256(tar).hexdigest()
    assert records.dtype == INDEX_DTYPE
    for record, (data, _, label), width in zip(records, SAMPLES, (40, 41, 42), strict=True):
        assert tar[record["offset"] : record["offset"] + record["size"]] == data
        assert (record["shard"], record["label"], record["crc32"]) == (7, label, zlib.crc32(data))
        assert (record["width"], record["height"]) == (width, 9)


def test_dali_index_lists_what_the_standard_library_finds(tmp_path: Path) -> None:
    write_shard(tmp_path)
    with tarfile.open(tmp_path / "000007.tar") as archive:
        parts = [f"{m.name.split('.')[1]} {m.offset_data} {m.size} {m.name}" for m in archive]
    expected = ["v1.2 3", *(f"{parts[i]} {parts[i + 1]}" for i in (0, 2, 4))]
    assert (tmp_path / "000007.idx").read_text().splitlines() == expected


def test_an_abandoned_shard_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, 0) as writer:
        writer.add(0, b"data", "jpg", 0, 1, 1)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, parts: list[bytes]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"), ShardWriter(tmp_path, 0) as writer:
        monkeypatch.setattr(os, "writev", full)
        writer.add(0, b"data", "jpg", 0, 1, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("accepted", [1, 4, 9])
def test_partial_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepted: int) -> None:
    write, writev = os.write, os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: writev(fd, [b"".join(parts)[:accepted]]))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:2]))
    with (tmp_path / "file").open("wb", buffering=0) as file:
        write_all(file.fileno(), [b"abc", b"", b"defg", b"hi"])
    assert (tmp_path / "file").read_bytes() == b"abcdefghi"


def test_the_disk_begins_before_a_shard_ends_and_leaves_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(shards.writer, "_WRITE_BACK_BYTES", 1024)
    monkeypatch.setattr(shards.writer, "start_write_back", lambda _, offset, size: begun.append((offset, size)))
    info, _ = write_shard(tmp_path)
    ends = [offset + size for offset, size in begun]
    assert [offset for offset, _ in begun] == [0, *ends[:-1]]
    assert len(begun) > 1
    assert info.bytes - ends[-1] < 1024


@pytest.mark.parametrize("there", [True, False], ids=["Linux", "elsewhere"])
def test_starting_the_write_back_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    if not there:
        monkeypatch.setattr(shards.files, "_sync_file_range", None)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"content")
        start_write_back(file.fileno(), 0, 7)
        start_write_back(file.fileno(), -1, 2**40)
    assert (tmp_path / "file").read_bytes() == b"content"
