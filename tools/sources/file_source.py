"""The source of every data set whose samples are image files: names and labels here, bytes in a container."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from shards.class_counts import samples_per_class
from shards.source import JSON, Fetcher, SampleRef
from tools.sources.archives import Container, Member

_SHOWN = 10


class FileSource:
    """A `Source` of image files: `names` in `container`, looked up when `samples` is first asked for."""

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
    ) -> None:
        self.name, self.split, self.class_names = name, split, class_names
        self.options, self.inputs = options, inputs
        self._names, self._labels, self._container = names, labels, container

    @cached_property
    def _members(self) -> dict[str, Member]:
        members = self._container.locate(self._names)
        absent = [name for name in self._names if name not in members]
        if absent:
            shown = "".join(f"\n  {name}" for name in absent[:_SHOWN])
            more = f"\n  and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
            raise FileNotFoundError(
                f"{len(absent)} of the {len(self._names)} listed images are not in {self._container.path}:"
                f"{shown}{more}\nIs this the archive (or folder) that the list was made for? Its names start there."
            )
        return members

    def _find_samples(self) -> Sequence[SampleRef]:
        members = self._members
        return [
            SampleRef(name, label, members[name].location)
            for name, label in zip(self._names, self._labels, strict=True)
        ]

    # On first use, so that repeating the command of a finished build does not unpack its archive again.
    samples: Sequence[SampleRef] = cached_property(_find_samples)  # type: ignore[assignment]

    def estimated_bytes(self) -> int | None:
        members = self._members
        return sum(members[name].size for name in self._names)

    def open(self) -> Fetcher:
        return self._container.open()

    def close(self) -> None:
        self._container.close()


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
