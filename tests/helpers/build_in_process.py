"""A build with two workers as a process of its own, for the test that kills it: ORIGINALS FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from shards.build import BuildOptions, build_shard_set
from tests.helpers.making import opened_folder


def build(root: Path, folder: Path, workers: int) -> None:
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))
    build_shard_set(opened_folder(root, names), folder, BuildOptions(samples_per_shard=10), workers)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
