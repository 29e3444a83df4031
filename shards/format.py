"""The files of a shard set, their names and layouts. See docs/shard-format.md for an overview."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from shards.source import JSON

FORMAT_VERSION = 1

DATASET_FILE = "dataset.json"
INDEX_FILE = "index.npy"
BY_CLASS_FILE = "by_class.npy"
SOURCES_FILE = "sources.txt"
BAD_FILE = "bad.jsonl"
LEFT_OUT_FILE = "left_out.txt"
RECORD_FILE = "build.json"  # exists during a build: what is being built

TAR_BLOCK = 512

# Unaligned on purpose: 28 bytes per sample on disk, and numpy reads packed fields as fast as mapped pages arrive.
INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),  # of the encoded image in its tar, in bytes
        ("size", "<u4"),  # of the encoded image, in bytes
        ("label", "<u4"),
        ("width", "<u2"),  # in pixels, as stored (an EXIF orientation is not applied)
        ("height", "<u2"),
        ("crc32", "<u4"),  # of the encoded image
    ]
)

MAX_IMAGE_SIDE = 65535  # width and height are u2 in the index


def shard_file(shard: int) -> str:
    """File name of a shard's tar: "000042.tar"."""
    return f"{shard:06d}.tar"


def shard_index_file(shard: int) -> str:
    """File name of a shard's DALI index: "000042.idx"."""
    return f"{shard:06d}.idx"


def sample_key(position: int) -> str:
    """Key of a sample in its tar: nine digits, so tools that sort by name keep the order."""
    return f"{position:09d}"


def printable_name(name: str) -> str:
    """`name` as one line of text: verbatim if printable, else with Python's escapes (also for invalid UTF-8)."""
    return name if name.isprintable() else name.encode("unicode_escape", "surrogatepass").decode("ascii")


@dataclass(frozen=True)
class FileInfo:
    """A file in the set: name, size in bytes, sha256 in hex."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardInfo(FileInfo):
    """A tar in the set and its number of samples."""

    samples: int


@dataclass(frozen=True)
class DatasetInfo:
    """The content of dataset.json. Written last: a folder that has it is complete.

    samples_per_class: in the order of class_names.
    shards: in order; the index's shard number is the position in this list.
    files: index.npy, by_class.npy, sources.txt.
    options: everything that determined the content: the source's options and the builder's.
    inputs: file name → {"bytes": …} for what the source read.
    counts: results of the check: images by stored format, transcoded, repaired, skipped, grey, cmyk, exif.
    made_with: versions of the libraries that encode images.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    samples_per_class: tuple[int, ...]
    shards: tuple[ShardInfo, ...]
    files: tuple[FileInfo, ...]
    options: dict[str, JSON]
    inputs: dict[str, JSON]
    counts: dict[str, int]
    made_with: dict[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> DatasetInfo:
        """Parse and check dataset.json. Raises ValueError, starting with `where`, if anything is malformed."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON ({error}); the set is damaged, build it again") from error
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{where}: format version {version!r} found, this program reads {FORMAT_VERSION}; build the set again"
            )
        try:
            return cls._from_record(record)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: {_reason(error)}; the set is damaged, build it again") from error

    @classmethod
    def _from_record(cls, record: dict[str, JSON]) -> DatasetInfo:
        unknown = set(record) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown entries {sorted(unknown)}")
        for key in ("options", "inputs", "counts", "made_with"):
            if not isinstance(record[key], dict):
                raise ValueError(f"{key} is not an object")
        info = cls(
            **{
                **record,
                "name": _string(record["name"]),
                "split": _string(record["split"]),
                "class_names": tuple(_string(name) for name in record["class_names"]),
                "samples_per_class": tuple(_count(count) for count in record["samples_per_class"]),
                "shards": tuple(
                    ShardInfo(**_file(shard), samples=_count(shard["samples"])) for shard in record["shards"]
                ),
                "files": tuple(FileInfo(**_file(file)) for file in record["files"]),
            }
        )
        if len(info.samples_per_class) != len(info.class_names):
            raise ValueError(f"{len(info.class_names)} class names but {len(info.samples_per_class)} class counts")
        if sum(info.samples_per_class) != info.num_samples:
            raise ValueError(f"{sum(info.samples_per_class)} samples by class but {info.num_samples} by shard")
        expected_names = [shard_file(number) for number in range(len(info.shards))]
        if [shard.file for shard in info.shards] != expected_names:
            raise ValueError("shards are not 000000.tar, 000001.tar, … in order")
        if [file.file for file in info.files] != [INDEX_FILE, BY_CLASS_FILE, SOURCES_FILE]:
            raise ValueError(f"files are not {INDEX_FILE}, {BY_CLASS_FILE}, {SOURCES_FILE}")
        return info


def content_checksum(info: DatasetInfo) -> str:
    """One hex sha256 over everything that a training run reads: tars, index, class order and class names.

    Two sets with equal checksums give equal batches; names, options and the build machine are not included.
    """
    content = [
        list(info.class_names),
        [shard.sha256 for shard in info.shards],
        [file.sha256 for file in info.files[:2]],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def npy_header(dtype: np.dtype, length: int) -> bytes:
    """The header that numpy.save writes for an array of shape (length,): the .npy format, version 1.0 (NEP 1).

    Opening a set compares it as bytes instead of parsing: the expected header is known, so foreign input is not
    interpreted. It is spelled out here because numpy may change its padding, and sets must stay readable.
    """
    text = f"{{'descr': {np.lib.format.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': ({length},), }}"
    text += " " * (21 - len(str(length)))  # numpy leaves room for the length to grow in place
    prefix = b"\x93NUMPY\x01\x00"
    before_padding = len(prefix) + 2 + len(text) + 1
    text += " " * (64 - before_padding % 64) + "\n"
    return prefix + len(text).to_bytes(2, "little") + text.encode("ascii")


def by_class_array(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The content of by_class.npy: uint32 (C + 1 + N,): the start of each class (the last entry is N), then the sample
    ids sorted by class, ascending within a class. A single array, so it maps as one file.
    """
    if len(labels) >= 2**32:
        raise ValueError(f"{len(labels)} samples; a shard set holds fewer than 2^32")
    starts = np.zeros(num_classes + 1, np.uint32)
    np.cumsum(np.bincount(labels, minlength=num_classes), out=starts[1:])
    return np.concatenate([starts, np.argsort(labels, kind="stable").astype(np.uint32)])


def read_dataset_info(folder: Path) -> DatasetInfo:
    """Read `folder`/dataset.json. Raises FileNotFoundError or ValueError."""
    path = folder / DATASET_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder; build the set with python -m tools.build_shards"
            ) from None
        raise FileNotFoundError(
            f"{path}: not found, so the folder is not a complete shard set; "
            "run the command that builds it (again): python -m tools.build_shards"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); the set is damaged, build it again") from error
    return DatasetInfo.from_json(text, where=str(path))


def _file(record: dict[str, JSON]) -> dict[str, JSON]:
    return {"file": _string(record["file"]), "bytes": _count(record["bytes"]), "sha256": _string(record["sha256"])}


def _string(value: JSON) -> str:
    if not isinstance(value, str):
        raise ValueError(f"text expected, {value!r} found")
    return value


def _count(value: JSON) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"a number of at least 0 expected, {value!r} found")
    return value


def _reason(error: Exception) -> str:
    return f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
