"""Building a shard set from a source: plan of shard tasks, resumption, disk space, and the files of the whole set.

    build.json                     first: what is being built. A later run continues only the very same build.
    NNNNNN.tar, .idx, .part.json   one set per finished task, in any order
    index.npy, by_class.npy, …     made from the parts
    dataset.json                   last: the set is complete; then the parts and build.json are removed

Every file is complete once it has its final name, so a build can be killed at any point and run again.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from shards.build_record import BuildRecord
from shards.files import exclusive_lock, remove_temporary_files
from shards.format import DATASET_FILE, RECORD_FILE, DatasetInfo, printable_name, shard_file
from shards.images import ImagePolicy
from shards.manifest import write_set_files
from shards.pool import Run, run_tasks
from shards.shard_task import OnBad, ShardResult, ShardTask, TaskSettings, part_path
from shards.source import Source
from shards.store_upload import StoreUpload

logger = logging.getLogger(__name__)

_MAX_SAMPLES_PER_SHARD = 10_000  # spreads small images over several shards too, so several workers build them
_ASSUMED_IMAGE_BYTES = 110_000  # the mean of ImageNet; used if the source does not know the sizes beforehand
_BYTES_BESIDE_IMAGE = 2048  # two tar headers, a label block, padding, and its share of the index files


@dataclass(frozen=True)
class BuildOptions:
    """How to turn a source into a shard set.

    policy: how images are checked and encoded.
    on_bad: a bad image stops the build ("fail"), is left out ("skip"), or is repaired, else left out ("repair").
    shard_bytes: target size of a tar. The number of samples per shard follows from it and the source's mean size.
    samples_per_shard: the number itself, instead of shard_bytes.
    seed: seed of the global shuffle.
    """

    policy: ImagePolicy = field(default_factory=ImagePolicy)
    on_bad: OnBad = "fail"
    shard_bytes: int = 256 * 2**20
    samples_per_shard: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.on_bad not in ("fail", "skip", "repair"):
            raise ValueError(f"on_bad {self.on_bad!r}; expected fail, skip or repair")
        if self.shard_bytes < 1 or (self.samples_per_shard is not None and self.samples_per_shard < 1):
            raise ValueError(
                f"shards of {self.shard_bytes} bytes, {self.samples_per_shard} samples; expected at least 1"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed}; expected 0 to 2^64 − 1")


class Progress(Protocol):
    """Receives the progress of a build."""

    def start(self, total: int, done: int) -> None:
        """The build has `total` samples, `done` of them in shards of an earlier run."""
        ...

    def advance(self, samples: int, data_bytes: int) -> None:
        """This many more samples, of this many bytes in the source, are done."""
        ...


class SilentProgress:
    """Ignores progress."""

    def start(self, total: int, done: int) -> None: ...

    def advance(self, samples: int, data_bytes: int) -> None: ...


def build_shard_set(
    source: Source,
    folder: Path,
    options: BuildOptions,
    workers: int = 1,
    progress: Progress | None = None,
    store: StoreUpload | None = None,
    run: Run = run_tasks,
) -> DatasetInfo:
    """Write `source` as a shard set into `folder`, continuing an earlier, interrupted build of the same set.

    The bytes depend only on the source and the options, not on workers or interruptions. A folder that already holds
    this set is left unchanged.

    store: the destination of the set; `folder` then holds shards only until they are uploaded.
    run: what runs the shard tasks.

    Raises ValueError if the folder holds something else or an image is bad (on_bad "fail"), RuntimeError if the disk
    is full, a worker was killed or the store fails; the same command continues once the cause is fixed.
    """
    _check_source(source)
    record = BuildRecord.of(
        source,
        {
            **asdict(options.policy),
            "on_bad": options.on_bad,
            "samples_per_shard": _samples_per_shard(source, options),
            "seed": options.seed,
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"{folder}: another build is writing to this folder; wait for it or stop it"
    naming = store.naming(folder) if store is not None else nullcontext()
    with naming, exclusive_lock(folder, refusal), _explaining_full_disk(source, folder, options):
        if store is not None:
            store.fetch_state(folder)
        if (folder / DATASET_FILE).exists():
            info = record.complete_set(folder)
            logger.info("%s: complete already, nothing to do", folder)
        else:
            record.claim(folder)
            remove_temporary_files(folder)
            info = _build(source, folder, options, record, workers, progress or SilentProgress(), store, run)
        if store is not None:
            store.finish(folder)
        else:
            _remove_build_files(folder, info)
    return info


def plan_tasks(source: Source, samples_per_shard: int, seed: int) -> Iterator[ShardTask]:
    """The shards of a build, in order: a seeded shuffle of all samples, cut into equal pieces (the last is shorter)."""
    order = shuffled_order(len(source.samples), seed)
    for shard, first in enumerate(range(0, len(order), samples_per_shard)):
        samples = tuple(source.samples[i] for i in order[first : first + samples_per_shard])
        yield ShardTask(shard, first, samples)


def shuffled_order(num_samples: int, seed: int) -> list[int]:
    """A permutation of range(num_samples). Sorted raw Philox words: numpy keeps these stable between its versions,
    but not `permutation`.
    """
    words = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(num_samples)
    return np.argsort(words, kind="stable").tolist()


def _build(
    source: Source,
    folder: Path,
    options: BuildOptions,
    record: BuildRecord,
    workers: int,
    progress: Progress,
    store: StoreUpload | None,
    run: Run,
) -> DatasetInfo:
    tasks = list(plan_tasks(source, record.samples_per_shard, options.seed))
    open_tasks = [task for task in tasks if ShardResult.read(folder, task.shard) is None]
    if store is None:
        _check_space(source, folder, options)
    else:
        store.claim(folder)  # shards pass through the folder
    open_samples = sum(len(task.samples) for task in open_tasks)
    progress.start(total=len(source.samples), done=len(source.samples) - open_samples)
    settings = TaskSettings(folder, options.policy, options.on_bad, None if store is None else store.url)
    run(source, open_tasks, settings, workers, progress.advance)
    if store is not None:
        store.fetch_parts(folder)  # tasks may have run on other machines
    return write_set_files(source, folder, tasks, record)


def _check_source(source: Source) -> None:
    num_classes = len(source.class_names)
    if not source.samples:
        raise ValueError(f"{source.name} {source.split}: the source has no samples")
    wrong = [ref for ref in source.samples if not 0 <= ref.label < num_classes]
    if wrong:
        examples = ", ".join(f"{printable_name(ref.name)}: {ref.label}" for ref in wrong[:10])
        raise ValueError(
            f"{source.name} {source.split}: {len(wrong)} labels outside 0..{num_classes - 1} ({examples}); "
            "the list does not belong to these classes"
        )


def _samples_per_shard(source: Source, options: BuildOptions) -> int:
    if options.samples_per_shard is not None:
        return options.samples_per_shard
    total = source.estimated_bytes()
    mean = _ASSUMED_IMAGE_BYTES if total is None else total / len(source.samples)
    return int(np.clip(options.shard_bytes / (mean + _BYTES_BESIDE_IMAGE), 1, _MAX_SAMPLES_PER_SHARD))


def _check_space(source: Source, folder: Path, options: BuildOptions) -> None:
    needed = _needed_bytes(source, folder, options)
    if needed is not None and needed > shutil.disk_usage(folder).free:
        raise RuntimeError(f"{folder}: {_disk_full(source, folder, options)}")


def _needed_bytes(source: Source, folder: Path, options: BuildOptions) -> int | None:
    """An estimate of the bytes still to be written, or None if only encoding would tell."""
    image_bytes = source.estimated_bytes()
    if image_bytes is None or options.policy.encode != "keep":
        return None
    done = sum(path.stat().st_size for path in folder.glob("*.tar"))
    return max(0, image_bytes + len(source.samples) * _BYTES_BESIDE_IMAGE - done)


@contextmanager
def _explaining_full_disk(source: Source, folder: Path, options: BuildOptions) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RuntimeError(f"{folder}: {_disk_full(source, folder, options)}") from error


def _disk_full(source: Source, folder: Path, options: BuildOptions) -> str:
    needed, free = _needed_bytes(source, folder, options), shutil.disk_usage(folder).free
    wanted = "an unknown number of" if needed is None else f"about {needed:,}"
    return (
        f"the disk is too full: {wanted} bytes needed, {free:,} free; "
        "make room and run the same command again: it continues where it stopped"
    )


def _remove_build_files(folder: Path, info: DatasetInfo) -> None:
    for shard in range(len(info.shards)):
        _remove(part_path(folder, shard_file(shard)))
    remove_temporary_files(folder)
    _remove(folder / RECORD_FILE)


def _remove(path: Path) -> None:
    """A finished set may be on a read-only mount, where removing fails even if there is nothing to remove."""
    if path.exists():
        path.unlink(missing_ok=True)
