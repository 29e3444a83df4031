"""Objects in a bucket: opened by URL, read by range, written and listed. Failures are retried, then reported.

The `obstore` package (Rust's object_store) accesses S3, Google Cloud Storage, Azure, web servers and folders, with
credentials, regions and endpoints from the usual environment variables. Retries happen only here, so one rule covers
refused connections, error statuses, responses that break off and responses of the wrong length.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from shards.commandline import home_path
from shards.files import OutsideError

logger = logging.getLogger(__name__)

SCHEMES = ("s3", "gs", "az", "https", "http", "file")

_LISTED_AT_ONCE = 1000
_CONNECT_WITHIN = timedelta(seconds=5)
_PIECE_BYTES = 32 * 2**20
# Without credentials the library queries the cloud's metadata service, which does not answer elsewhere.
_NO_CREDENTIALS = "169.254.169.254"
# Client errors that a retry cannot fix. S3 also returns 400 when it was too slow to read a request.
_FINAL_STATUS = re.compile(r"status code: 4(?!00|08|25|29)\d\d")

Result = TypeVar("Result")


class StoreError(OutsideError):
    """A store cannot be read or written; the message has the object's URL and the cause."""


@dataclass(frozen=True)
class Patience:
    """How often a request is tried, and the pauses in between: doubled each time, plus up to half at random.

    With the defaults a store that throttles or restarts has about a minute.
    """

    attempts: int = 12
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 8.0
    timeout_seconds: float = 30.0

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each further attempt."""
        for attempt in range(self.attempts - 1):
            pause = min(self.first_pause_seconds * 2**attempt, self.longest_pause_seconds)
            yield pause * (1 + random.random() / 2)


@dataclass
class Traffic:
    """Transfer statistics of a store: requests, requests that failed and were retried, and bytes received."""

    requests: int = 0
    repeated: int = 0
    bytes_read: int = 0


@dataclass(frozen=True)
class ObjectInfo:
    """Size in bytes, and the store's version tag for the object, if it has one."""

    bytes: int
    version: str | None


def is_url(path: Path | str) -> bool:
    """Whether a set is in a store; `Path` objects are always local."""
    return isinstance(path, str) and "://" in path


def set_location(text: str) -> Path | str:
    """A folder or a URL as the user typed it, for command lines."""
    return text.rstrip("/") if is_url(text) else home_path(text)


class Bucket:
    """The objects below one URL. Threads may share it; processes open their own.

    url: without a trailing slash. traffic: what this object has transferred.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Raises ValueError for an unsupported URL, StoreError if the `obstore` package is missing."""
        self.url = url.rstrip("/")
        self.patience = patience or Patience()
        self.traffic = Traffic()
        self._obstore = _import_obstore(self.url)
        self._store = self._connect()
        self._versions: dict[str, set[str | None]] = {}
        self._lock = threading.Lock()

    def url_of(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.url}/{name}"

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """An object, or its bytes from `start` up to `stop`. Raises StoreError, or FileNotFoundError if absent."""
        wanted = None if start is None or stop is None else (start, stop)

        def get() -> bytes:
            answer = self._obstore.get(self._store, name, options={} if wanted is None else {"range": wanted})
            data = bytes(answer.bytes())
            expected = answer.meta["size"] if wanted is None else wanted[1] - wanted[0]
            if len(data) != expected:
                raise self._obstore.exceptions.GenericError(f"{len(data)} bytes received, {expected} expected")
            with self._lock:
                self.traffic.bytes_read += len(data)
            self.note_version(name, answer.meta["e_tag"])
            return data

        part = "" if wanted is None else f", bytes {wanted[0]} to {wanted[1]}"
        return self._patiently(get, f"{self.url_of(name)}{part}")

    def download(self, name: str, path: Path) -> None:
        """Download an object into a file, in pieces, so it may be of any size. Raises as `read` does."""
        size = self.info(name).bytes
        with path.open("wb") as file:
            for start in range(0, size, _PIECE_BYTES):
                file.write(self.read(name, start, min(start + _PIECE_BYTES, size)))

    def info(self, name: str) -> ObjectInfo:
        """Size and version of an object. Raises as `read` does."""
        found = self._patiently(lambda: self._obstore.head(self._store, name), self.url_of(name))
        self.note_version(name, found["e_tag"])
        return ObjectInfo(found["size"], found["e_tag"])

    def note_version(self, name: str, mark: str | None) -> None:
        """Record the version of an object seen here or elsewhere; a different one later means that it has changed."""
        with self._lock:
            self._versions.setdefault(name, set()).add(mark and mark.strip('"'))

    def changed(self, name: str) -> bool:
        """Whether the object was replaced since we first listed or read it, by the store's version tags."""
        with self._lock:
            return len(self._versions.get(name, ())) > 1

    def listing(self) -> dict[str, ObjectInfo]:
        """All objects below the URL, by name. Raises StoreError; web servers cannot list."""

        def get() -> dict[str, ObjectInfo]:
            chunks = self._obstore.list(self._store, chunk_size=_LISTED_AT_ONCE)
            found = {entry["path"]: ObjectInfo(entry["size"], entry["e_tag"]) for chunk in chunks for entry in chunk}
            for name, info in found.items():
                self.note_version(name, info.version)
            return found

        return self._patiently(get, f"{self.url}: listing")

    @property
    def lists(self) -> bool:
        """Whether this type of store can list its objects."""
        return not self.url.startswith(("http:", "https:"))

    def write(self, name: str, content: bytes | Path) -> None:
        """Write an object, completely or not at all, from memory or from a file. Raises StoreError."""
        self._patiently(lambda: self._obstore.put(self._store, name, content), f"{self.url_of(name)}: writing")

    def delete(self, names: Iterable[str]) -> None:
        """Delete these objects, which must exist."""
        if doomed := list(names):
            self._patiently(lambda: self._obstore.delete(self._store, doomed), f"{self.url}: deleting")

    def _connect(self) -> Any:
        seconds = timedelta(seconds=self.patience.timeout_seconds)
        try:
            return self._obstore.store.from_url(
                self.url,
                # The user chose the endpoint: one without TLS is intended.
                client_options={
                    "connect_timeout": min(seconds, _CONNECT_WITHIN),
                    "read_timeout": seconds,  # without receiving any byte
                    "timeout": 20
                    * seconds,  # for a whole request: a large piece over a slow connection is not a failure
                    "allow_http": True,
                },
                retry_config={"max_retries": 0, "retry_timeout": seconds},
            )
        except (self._obstore.exceptions.BaseError, ValueError) as error:
            raise ValueError(f"{self.url}: not usable as the URL of a store: {_first_line(error)}") from error

    def _patiently(self, request: Callable[[], Result], what: str) -> Result:
        pauses = self.patience.pauses()
        while True:
            with self._lock:
                self.traffic.requests += 1
            try:
                return request()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{what}: no such object in the store") from error
            except (self._obstore.exceptions.BaseError, OSError) as error:
                ending = not threading.main_thread().is_alive()  # the interpreter waits for this thread
                pause = None if ending or self._is_final(error) else next(pauses, None)
                if pause is None:
                    raise StoreError(f"{what}: {_first_line(error)}; {_advice(self._is_final(error))}") from error
                logger.debug("%s: %s; again in %.1f s", what, _first_line(error), pause)
                with self._lock:
                    self.traffic.repeated += 1
                time.sleep(pause)

    def _is_final(self, error: Exception) -> bool:
        kinds = self._obstore.exceptions
        refused = (kinds.PermissionDeniedError, kinds.UnauthenticatedError, kinds.NotSupportedError)
        text = str(error)
        return isinstance(error, refused) or _NO_CREDENTIALS in text or _FINAL_STATUS.search(text) is not None


def _import_obstore(url: str) -> Any:
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"{url}: {scheme}:// is not a supported store; expected {', '.join(SCHEMES)}, or a folder")
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise StoreError(f"{url}: object stores need the extra 'store': pip install 'longtail[store]'") from error
    return obstore


def _first_line(error: Exception) -> str:
    """The library's message without the debug structure that follows it."""
    return str(error).split("\n", 1)[0].rstrip(" ;:.") or type(error).__name__


def _advice(final: bool) -> str:
    if final:
        return "check the URL, the credentials and their permissions"
    return "gave up after repeated attempts; once the store responds, the same command continues"
