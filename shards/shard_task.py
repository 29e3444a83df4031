"""One shard of a build: fetch, check and write its samples, and record the result next to it.

Shard tasks are independent of each other and run by an executor (`shards.pool`). The record, 000042.part.json, is
written after the shard has its final name: a task whose record exists is done.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from shards.files import write_atomically
from shards.format import INDEX_DTYPE, ShardInfo, printable_name, shard_file, shard_index_file
from shards.image_formats import BadImageError, is_misnamed
from shards.images import CheckedImage, ImagePolicy, check_image, repair_image
from shards.source import JSON, Fetcher, SampleRef
from shards.writer import ShardWriter

OnBad = Literal["fail", "skip", "repair"]

# Samples to read ahead: enough to hide a disk's latency behind checking and hashing.
_AHEAD = 16
_NAMED_BAD_IMAGES = 20  # maximum number named in the message of a failed build


@dataclass(frozen=True)
class ShardTask:
    """The samples of one shard, in order.

    shard: its number; first_position: position of its first sample in the shuffled order.
    """

    shard: int
    first_position: int
    samples: tuple[SampleRef, ...]


@dataclass(frozen=True)
class TaskSettings:
    """What all tasks of a build share.

    folder: where shards are written. upload_to: the URL that complete shards move to.
    """

    folder: Path
    policy: ImagePolicy
    on_bad: OnBad
    upload_to: str | None = None


@dataclass(frozen=True)
class ShardResult:
    """The result of a finished task, used at the end of the build.

    info: the shard's entry of dataset.json; records: INDEX_DTYPE (samples,).
    skipped: positions (in the shuffled order) of the samples left out.
    bad: one entry per bad image: position, source, label, action ("skipped" or "repaired"), reason.
    counts: results of the check, summed over the shard.
    """

    info: ShardInfo
    records: np.ndarray
    skipped: list[int]
    bad: list[dict[str, JSON]]
    counts: dict[str, int]

    def write(self, folder: Path) -> None:
        record = {**asdict(self), "records": self.records.tolist()}
        write_atomically(part_path(folder, self.info.file), json.dumps(record, ensure_ascii=True).encode("ascii"))

    @classmethod
    def read(cls, folder: Path, shard: int) -> ShardResult | None:
        """The result of an earlier run, or None if that shard is not complete."""
        tar = folder / shard_file(shard)
        if not part_path(folder, tar.name).is_file():
            return None
        if _uploaded_mark(folder, shard).is_file():
            return cls.read_record(folder, shard)
        if not (tar.is_file() and (folder / shard_index_file(shard)).is_file()):
            return None
        result = cls.read_record(folder, shard)
        return result if tar.stat().st_size == result.info.bytes else None

    @classmethod
    def read_record(cls, folder: Path, shard: int) -> ShardResult:
        """A task's record of its shard, no matter where the shard itself is."""
        path = part_path(folder, shard_file(shard))
        try:
            record = json.loads(path.read_bytes())
            records = np.array([tuple(row) for row in record.pop("records")], INDEX_DTYPE)
            return cls(info=ShardInfo(**record.pop("info")), records=records, **record)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}: damaged ({error}); delete it, and its shard will be built again") from error


def part_path(folder: Path, tar_name: str) -> Path:
    """The file that keeps a shard task's result until the end of the build."""
    return folder / f"{PurePosixPath(tar_name).stem}.part.json"


def mark_as_uploaded(folder: Path, shard: int) -> None:
    """Mark a shard whose record is in `folder` as complete in the store."""
    _uploaded_mark(folder, shard).touch()


def _uploaded_mark(folder: Path, shard: int) -> Path:
    return folder / f"{PurePosixPath(shard_file(shard)).stem}.uploaded"


def run_shard_task(
    task: ShardTask, settings: TaskSettings, fetcher: Fetcher, advance: Callable[[int, int], None]
) -> None:
    """Write the shard and its record. `advance(samples, bytes)` is called after each sample.

    With on_bad "fail", raises ValueError naming the shard's bad images; OSError from reading or writing.
    """
    skipped: list[int] = []
    bad: list[dict[str, JSON]] = []
    counts: Counter[str] = Counter()
    with ShardWriter(settings.folder, task.shard) as writer:
        for position, ref in enumerate(_announced(task.samples, fetcher), start=task.first_position):
            image: CheckedImage | None
            data = b""
            try:
                data = _fetched(fetcher, ref)
                image = check_image(data, settings.policy)
            except BadImageError as error:
                image = _repaired(data, settings.policy) if settings.on_bad == "repair" else None
                action = "repaired" if image else "skipped"
                entry = {"position": position, "source": printable_name(ref.name), "label": ref.label}
                bad.append({**entry, "action": action, "reason": str(error)})
                if settings.on_bad == "fail" and len(bad) == _NAMED_BAD_IMAGES:
                    break
            if image is None:
                skipped.append(position)
                counts["skipped"] += 1
            else:
                writer.add(position, image.data, image.extension, ref.label, image.width, image.height)
                counts.update((image.stored_format, *image.notes))
                counts["misnamed"] += is_misnamed(ref.name, image.stored_format)
            advance(1, len(data))
        if bad and settings.on_bad == "fail":  # only after the whole shard: one attempt names them all
            raise ValueError(_refusal(bad))
        info, records = writer.finish()
    ShardResult(info, records, skipped, bad, dict(+counts)).write(settings.folder)
    if settings.upload_to is not None:
        from shards.store_upload import upload_shard  # it imports this module

        upload_shard(settings.upload_to, settings.folder, task.shard)


def _announced(samples: Sequence[SampleRef], fetcher: Fetcher) -> Iterator[SampleRef]:
    """The samples in order, each announced to the fetcher `_AHEAD` samples earlier."""
    for ref in samples[:_AHEAD]:
        fetcher.will_fetch(ref)
    for ref, later in zip_longest(samples, samples[_AHEAD:]):
        if later is not None:
            fetcher.will_fetch(later)
        yield ref


def _fetched(fetcher: Fetcher, ref: SampleRef) -> bytes:
    """The bytes. A problem with one file makes it a bad image; a failing disk or network raises OSError."""
    try:
        return fetcher.fetch(ref)
    except ValueError as error:
        raise BadImageError(str(error).removeprefix(f"{ref.name}: ")) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise BadImageError(f"cannot be read: {error.strerror}") from error


def _repaired(data: bytes, policy: ImagePolicy) -> CheckedImage | None:
    """The repaired image, or None if nothing can be kept."""
    try:
        return repair_image(data, policy)
    except BadImageError:
        return None


def _refusal(bad: list[dict[str, JSON]]) -> str:
    named = "; ".join(f"{entry['source']}: {entry['reason']}" for entry in bad)
    few = "that file" if len(bad) == 1 else "these files"
    more = " (there may be more)" if len(bad) == _NAMED_BAD_IMAGES else ""
    return (
        f"{named}{more}; replace {few}, or continue with --on-bad skip (leave out bad images) or "
        "--on-bad repair (keep what can be read)"
    )
