"""What the builder needs to know about a data set's original files: the samples, and how to fetch their bytes.

The readers that implement this interface are in `tools.sources`. A source never decodes, shuffles or writes: the
builder (`shards.build`) does that in the same way for all sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

JSON = Any  # None, bool, int, float, str, list or dict of these


class SampleRef(NamedTuple):
    """One sample of a source. A tuple, because a million of them are pickled for the workers.

    name: its original file, e.g. "train/n01440764/n01440764_762.JPEG"; written to sources.txt and into errors, never
        used as a path. Relative and without machine-specific paths, so two machines build the same bytes.
    label: class id, 0 .. len(class_names) - 1.
    location: where the source's fetcher finds the bytes: a path, a row, or (offset, size, …). Picklable.
    """

    name: str
    label: int
    location: str | int | tuple[int, ...]


class Fetcher(Protocol):
    """An opened source. Opened once per worker process and used by one thread; closed, or dropped when the process
    exits.
    """

    def fetch(self, ref: SampleRef) -> bytes:
        """The encoded image, byte for byte as stored. Raises OSError or ValueError, naming the sample, if it cannot."""
        ...

    def will_fetch(self, ref: SampleRef) -> None:
        """Announce that `ref` will be fetched soon, so a disk or network file system can start reading. May do nothing,
        and never fails: errors are left to `fetch`.
        """
        ...

    def close(self) -> None:
        """Close files. `fetch` is not called afterwards."""
        ...


class Source(Protocol):
    """A data set as its authors distribute it. Picklable, with plain attributes as declared here: every worker process
    gets and opens a copy whose `samples` is an empty tuple (each shard task carries its own samples).

    name: name of the data set, e.g. "imagenet-lt".
    split: "train", "val" or "test".
    class_names: one per class; C = len(class_names).
    samples: in the source's own order (the builder shuffles); the same on every machine.
    options: everything that determines the content (lists, ratios, seeds), without machine-specific paths. A build
        resumes only with equal options.
    inputs: the files read: file name → {"bytes": …, "mtime_ns": …}. They reveal a file that changed between a build
        and its resumption.
    left_out: files next to the images that are not samples: name → reason. Listed in the set.
    """

    name: str
    split: str
    class_names: list[str]
    samples: Sequence[SampleRef]
    options: dict[str, JSON]
    inputs: dict[str, dict[str, JSON]]
    left_out: dict[str, str]

    def estimated_bytes(self) -> int | None:
        """Sum of the encoded sizes of `samples`, or None if only reading everything would tell."""
        ...

    def open(self) -> Fetcher:
        """A fetcher for the calling process."""
        ...

    def close(self) -> None:
        """Remove scratch files (a spooled archive). Called once, by the parent, only after a complete build: the next
        run of a killed build reuses them.
        """
        ...
