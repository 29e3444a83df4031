"""Files that are complete or absent: temporary name, flush to disk, rename. Folders with one writer at a time."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)


class OutsideError(RuntimeError):
    """The machine or the data is at fault, not this program; the message tells the user what to do."""


TEMPORARY_SUFFIX = ".tmp"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without `flock`, some network file systems

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # missing in the os module
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


def temporary_name(path: Path) -> Path:
    """Where this process writes `path` until it is complete: in the same folder, so the rename is atomic.

    The name is different each time: a worker that briefly outlives its killed parent, or one on another machine that
    shares the folder, must not write into the files of the build that continues.
    """
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path, temporary: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write; it becomes `path` if the block finishes without an error, and is removed otherwise.

    temporary: its name until then, if the folder has only one writer (default: a unique name).
    """
    temporary = temporary or temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the content of `path` with `data`, completely or not at all."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def exclusive_lock(folder: Path, message: str) -> Iterator[None]:
    """Lock `folder` against other processes that use this lock. It is released when this process ends, for any reason.

    Raises OutsideError(message) if another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)  # not inherited by child processes
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutsideError(message) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s: this file system has no locks; make sure that nothing else writes there", folder)
        yield
    finally:
        os.close(descriptor)


def write_all(descriptor: int, parts: Sequence[bytes]) -> None:
    """Write `parts` in order with as few system calls as the kernel allows, without joining them first."""
    written = os.writev(descriptor, parts)
    if written < sum(map(len, parts)):  # a full disk accepts only a part; the next call raises the error
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def start_write_back(descriptor: int, offset: int, size: int) -> None:
    """Start writing these bytes of a file to disk, if the system supports it (Linux); a later fsync then waits less.

    Only a hint: it guarantees nothing, does not wait and never fails.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
