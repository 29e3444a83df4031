"""What the builder needs to know of a data set's original files: which samples exist, and how to fetch their bytes.

The readers that fulfil this contract live in `tools.sources`. A source never decodes, shuffles or writes: the builder
(`shards.build`) does that for all sources alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

JSON = Any  # None, bool, int, float, str, list or dict of these


class SampleRef(NamedTuple):
    """One sample that a source offers. A tuple: a million of them are pickled for the workers.

    name: where it came from, e.g. "train/n01440764/n01440764_762.JPEG"; written to sources.txt and into errors, never
        used as a path. Relative and free of machine paths, so that two machines build the same bytes.
    label: class id, 0 .. len(class_names) - 1.
    location: where the source's own fetcher finds the bytes: a path, a row, or (offset, size, …). Picklable.
    """

    name: str
    label: int
    location: str | int | tuple[int, ...]


class Fetcher(Protocol):
    """The opened source. Opened once in each worker process, used by one thread, closed or dropped with
    its process.
    """

    def fetch(self, ref: SampleRef) -> bytes:
        """The encoded image, byte for byte as stored. Raises OSError or ValueError, naming the sample, if it cannot."""
        ...

    def will_fetch(self, ref: SampleRef) -> None:
        """`ref` is fetched a little later: a disk or a network file system may begin to read it. May do nothing, and
        never fails: that is left to `fetch`.
        """
        ...

    def close(self) -> None:
        """Close files. No fetch follows."""
        ...


class Source(Protocol):
    """A data set as its authors distribute it. Picklable; the attributes are plain ones, as declared here: every worker
    process gets a copy whose `samples` is an empty tuple (each shard task carries its own samples) and opens that.

    name: of the data set, e.g. "imagenet-lt".
    split: "train", "val" or "test".
    class_names: one a class; C = len(class_names).
    samples: in the source's own order (the builder shuffles); the same on every machine.
    options: everything that decides the content (lists, ratios, seeds), without machine paths. A build is resumed only
        with equal options.
    inputs: the files read: file name → {"bytes": …, "mtime_ns": …}. A file that changed between a build and its
        resumption is noticed by these.
    left_out: files that lie with the images and are no samples: name → reason. Listed in the set.
    """

    name: str
    split: str
    class_names: list[str]
    samples: Sequence[SampleRef]
    options: dict[str, JSON]
    inputs: dict[str, dict[str, JSON]]
    left_out: dict[str, str]

    def estimated_bytes(self) -> int | None:
        """Sum of the encoded sizes of `samples`, or None where only reading everything would tell."""
        ...

    def open(self) -> Fetcher:
        """A fetcher for the calling process."""
        ...

    def close(self) -> None:
        """Remove scratch files (a spooled archive). Called once, by the parent, after a complete build only: a killed
        build finds them again.
        """
        ...
