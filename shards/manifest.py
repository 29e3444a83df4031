"""The files that describe a whole set, made from the results of its finished shard tasks."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.build_record import BuildRecord
from shards.files import hash_file, write_atomically
from shards.format import (
    BAD_FILE,
    BY_CLASS_FILE,
    DATASET_FILE,
    INDEX_FILE,
    LEFT_OUT_FILE,
    SOURCES_FILE,
    DatasetInfo,
    FileInfo,
    ShardInfo,
    by_class_array,
    npy_header,
    printable_name,
)
from shards.shard_task import ShardResult, ShardTask
from shards.source import JSON, Source

logger = logging.getLogger(__name__)


def write_set_files(source: Source, folder: Path, tasks: Sequence[ShardTask], record: BuildRecord) -> DatasetInfo:
    """Write index.npy, by_class.npy, sources.txt, and, last, dataset.json.

    bad.jsonl and left_out.txt are written if there is something to list.

    record: the build's record; its permanent part becomes options, inputs and made_with.
    """
    records: list[np.ndarray] = []
    shards: list[ShardInfo] = []
    sources: list[str] = []
    bad: list[dict[str, JSON]] = []
    counts: Counter[str] = Counter()
    for task in tasks:
        result = ShardResult.read(folder, task.shard)
        if result is None:
            raise RuntimeError(f"{folder}: shard {task.shard} disappeared during the build; run the same command again")
        shards.append(result.info)
        records.append(result.records)
        bad += result.bad
        counts.update(result.counts)
        skipped = set(result.skipped)
        kept = (ref for position, ref in enumerate(task.samples, task.first_position) if position not in skipped)
        sources += [printable_name(ref.name) + "\n" for ref in kept]
    index = np.concatenate(records)
    samples_per_class = np.bincount(index["label"], minlength=len(source.class_names))
    _warn_of_empty_classes(folder, source.class_names, samples_per_class)

    if bad:
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in bad)
        write_atomically(folder / BAD_FILE, lines.encode())
    if source.left_out:
        lines = "".join(f"{printable_name(name)}\t{why}\n" for name, why in sorted(source.left_out.items()))
        write_atomically(folder / LEFT_OUT_FILE, lines.encode())
    write_atomically(folder / INDEX_FILE, _npy(index))
    write_atomically(folder / BY_CLASS_FILE, _npy(by_class_array(index["label"], len(source.class_names))))
    write_atomically(folder / SOURCES_FILE, "".join(sources).encode())
    info = DatasetInfo(
        name=source.name,
        split=source.split,
        class_names=tuple(source.class_names),
        samples_per_class=tuple(samples_per_class.tolist()),
        shards=tuple(shards),
        files=tuple(_file_info(folder / name) for name in (INDEX_FILE, BY_CLASS_FILE, SOURCES_FILE)),
        options=record.options,
        inputs=record.lasting_inputs,
        counts=dict(sorted(counts.items())),
        made_with=record.made_with,
    )
    write_atomically(folder / DATASET_FILE, info.to_json().encode())
    return info


def _warn_of_empty_classes(folder: Path, class_names: list[str], samples_per_class: np.ndarray) -> None:
    empty = np.flatnonzero(samples_per_class == 0)
    if len(empty):
        names = ", ".join(class_names[i] for i in empty[:10])
        logger.warning("%s: %d of %d classes have no sample: %s", folder, len(empty), len(class_names), names)


def _npy(array: np.ndarray) -> bytes:
    return npy_header(array.dtype, len(array)) + array.tobytes()


def _file_info(path: Path) -> FileInfo:
    return FileInfo(path.name, path.stat().st_size, hash_file(path))
