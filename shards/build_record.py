"""The identity of a build: build.json lets a later run check whether a folder holds the same build or set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.files import TEMPORARY_SUFFIX, write_atomically
from shards.format import RECORD_FILE, DatasetInfo, read_dataset_info
from shards.images import library_versions
from shards.source import JSON, Source


@dataclass(frozen=True)
class BuildRecord:
    """What identifies a build. All values are as they read back from JSON.

    options: everything that determines the content: the source's options and the builder's.
    inputs: file name → what is known about a file that the source reads, such as its size and time.
    made_with: versions of the libraries that encode images.
    """

    name: str
    split: str
    options: dict[str, JSON]
    inputs: dict[str, dict[str, JSON]]
    made_with: dict[str, str]

    @classmethod
    def of(cls, source: Source, builder: dict[str, JSON]) -> BuildRecord:
        """The record of building `source` with these builder options, including "samples_per_shard"."""
        options = {"source": source.options, "source_sha256": _digest(source), **builder}
        return cls(source.name, source.split, _from_json(options), _from_json(source.inputs), library_versions())

    @property
    def samples_per_shard(self) -> int:
        """Samples in every shard but the last."""
        return int(self.options["samples_per_shard"])

    @property
    def lasting_inputs(self) -> dict[str, JSON]:
        """The inputs without their times, which differ between copies of an archive."""
        return {name: {"bytes": entry["bytes"]} for name, entry in self.inputs.items()}

    def complete_set(self, folder: Path) -> DatasetInfo:
        """The finished set in `folder`. Raises ValueError if it is not the one of this build.

        Input times and library versions no longer matter: the bytes are written and have checksums.
        """
        info = read_dataset_info(folder)
        found: dict[str, JSON] = {"name": info.name, "split": info.split, "options": info.options}
        wanted: dict[str, JSON] = {"name": self.name, "split": self.split, "options": self.options}
        _refuse_differences(folder, {**found, "inputs": info.inputs}, {**wanted, "inputs": self.lasting_inputs})
        return info

    def claim(self, folder: Path) -> None:
        """Claim the folder for this build. Raises ValueError if it holds another build or unrelated files."""
        path = folder / RECORD_FILE
        if path.exists():
            try:
                found = json.loads(path.read_bytes())
            except ValueError as error:
                raise ValueError(
                    f"{path}: damaged ({error}); delete the folder to build the set from the start"
                ) from error
            _refuse_differences(folder, found, asdict(self))
        elif strangers := sorted(p.name for p in folder.iterdir() if not p.name.endswith(TEMPORARY_SUFFIX)):
            raise ValueError(
                f"{folder}: holds {len(strangers)} files that were not written by a build "
                f"({', '.join(strangers[:3])}, …); "
                "choose an empty --out folder"
            )
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())


def _digest(source: Source) -> str:
    """sha256 of names, labels and classes: detects added or removed images."""
    digest = hashlib.sha256(json.dumps(source.class_names).encode())
    for ref in source.samples:
        digest.update(f"{ref.name}\0{ref.label}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _from_json(value: JSON) -> JSON:
    return json.loads(json.dumps(value))


def _refuse_differences(folder: Path, found: dict[str, JSON], wanted: dict[str, JSON]) -> None:
    before, now = dict(_leaves(found)), dict(_leaves(wanted))
    if before.get("options.on_bad") == "fail":  # nothing built so far has a bad image, so the rule makes no difference
        before["options.on_bad"] = now["options.on_bad"]
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed:
        values = "; ".join(f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in changed[:10])
        raise ValueError(
            f"{folder}: holds another data set, or one built with other options or inputs: {values}. "
            "Choose another --out folder, or delete this one"
        )


def _leaves(value: JSON, path: str = "") -> Iterator[tuple[str, JSON]]:
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}" if path else key)
    else:
        yield path, value
