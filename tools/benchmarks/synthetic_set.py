"""The last files of a shard set that was not built from a source: for benchmarks and for tests."""

from collections.abc import Sequence
from pathlib import Path

from shards.files import hash_file
from shards.format import BY_CLASS_FILE, DATASET_FILE, INDEX_FILE, SOURCES_FILE, DatasetInfo, FileInfo, ShardInfo
from shards.reader import HASHED_INDEX_BYTES


def finish_set(folder: Path, name: str, samples_per_class: Sequence[int], shards: Sequence[ShardInfo]) -> Path:
    """Write dataset.json for a folder that has its index, samples by class, sources and shards.

    Classes are named "class 0", "class 1", …
    """
    info = DatasetInfo(
        name=name,
        split="train",
        class_names=tuple(f"class {number}" for number in range(len(samples_per_class))),
        samples_per_class=tuple(samples_per_class),
        shards=tuple(shards),
        files=tuple(_file_info(folder / file) for file in (INDEX_FILE, BY_CLASS_FILE, SOURCES_FILE)),
        options={},
        inputs={},
        counts={},
        made_with={},
    )
    (folder / DATASET_FILE).write_text(info.to_json(), encoding="utf-8")
    return folder


def _file_info(path: Path) -> FileInfo:
    size = path.stat().st_size
    # Opening ignores the checksum of a larger file.
    return FileInfo(path.name, size, hash_file(path) if size <= HASHED_INDEX_BYTES else "")
