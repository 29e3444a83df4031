"""The source of every data set whose samples are image files: names and labels here, bytes in a container."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from shards.class_counts import samples_per_class
from shards.format import printable_name
from shards.source import JSON, Fetcher, SampleRef
from tools.sources.archives import Container
from tools.sources.member_tree import Member

logger = logging.getLogger(__name__)

_SHOWN = 10


class FileSource:
    """A `Source` of image files: `names` in `container`, looked up when `samples` is first used."""

    def __init__(
        self,
        name: str,
        split: str,
        class_names: list[str],
        names: Sequence[str],
        labels: Sequence[int],
        container: Container,
        options: dict[str, JSON],
        inputs: dict[str, dict[str, JSON]],
        left_out: dict[str, str] | None = None,
    ) -> None:
        self.name, self.split, self.class_names = name, split, class_names
        self.options, self.inputs = options, inputs
        self.left_out = left_out or {}
        self._names, self._labels, self._container = names, labels, container

    @cached_property
    def _found(self) -> tuple[list[SampleRef], int]:
        """The samples and the sum of their sizes in bytes."""
        members = self._located()
        absent = [name for name in self._names if name not in members]
        if absent:
            raise FileNotFoundError(self._absent_message(absent))
        samples = [
            SampleRef(name, label, members[name].location)
            for name, label in zip(self._names, self._labels, strict=True)
        ]
        return samples, sum(members[name].size for name in self._names)

    def _located(self) -> dict[str, Member]:
        """The members by listed name; if no listed name exists, looked up inside the single top-level folder."""
        members = self._container.locate(self._names)
        if members or not (top := _top_folder(self._container)):
            return members
        below = self._container.locate([f"{top}/{name}" for name in self._names])
        if below:
            logger.warning("%s: the listed names are relative to %s/", self._container.path, top)
        return {name[len(top) + 1 :]: member for name, member in below.items()}

    def _absent_message(self, absent: list[str]) -> str:
        shown = "".join(f"\n  {printable_name(name)}" for name in absent[:_SHOWN])
        more = f"\n  and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        there = (name for name, member in self._container.members() if member is not None)
        examples = "".join(f"\n  {printable_name(name)}" for name in islice(there, 3))
        return (
            f"{len(absent)} of the {len(self._names)} listed images are not in {self._container.path}:{shown}{more}\n"
            f"Names there look like this:{examples or ' (nothing there)'}\n"
            "Is this the archive (or folder) that the list was made for? --strip-prefix removes the beginning of the "
            "listed names."
        )

    def _samples(self) -> Sequence[SampleRef]:
        return self._found[0]

    # Computed on first use: errors in a second list are found before the first list's archive is unpacked.
    samples: Sequence[SampleRef] = cached_property(_samples)  # type: ignore[assignment]

    def estimated_bytes(self) -> int | None:
        return self._found[1]

    def __getstate__(self) -> dict[str, Any]:
        # A worker only opens the container; tasks carry their own samples, and a million names stay in the parent.
        kept_back = ("_names", "_labels", "_found", "samples", "left_out")
        return {key: value for key, value in self.__dict__.items() if key not in kept_back}

    def open(self) -> Fetcher:
        return self._container.open()

    def close(self) -> None:
        self._container.close()


def _top_folder(container: Container) -> str:
    """The single folder that holds all files, or ""."""
    top = ""
    for name, member in container.members():
        first, _, inside = name.partition("/")
        if first.startswith(".") or first == "__MACOSX" or (member is None and not inside):
            continue
        if not inside or (top and first != top):
            return ""
        top = first
    return top


def check_no_class_is_empty(labels: Sequence[int], class_names: Sequence[str], where: str) -> None:
    """Raises ValueError naming the classes without a sample."""
    empty = np.flatnonzero(samples_per_class(labels, len(class_names)) == 0)
    if empty.size:
        shown = ", ".join(f"{class_names[label]!r} (label {label})" for label in empty[:_SHOWN])
        more = f" and {empty.size - _SHOWN} more" if empty.size > _SHOWN else ""
        raise ValueError(
            f"{where}: {empty.size} of {len(class_names)} classes have no image: {shown}{more}; "
            "add images or remove the class, or pass --allow-partial"
        )
