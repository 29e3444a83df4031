"""CIFAR-10-LT and CIFAR-100-LT from the original pickled archives, with the subset rules of the papers."""

from __future__ import annotations

import argparse
import gzip
import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from shards.class_counts import Int64Array, samples_per_class
from shards.commandline import finite_number, home_path
from shards.source import JSON, SampleRef, Source
from tools.sources.archives import file_stamp
from tools.sources.pixel_source import PixelSource
from tools.sources.subsets import cmo_subset, glmc_subset, long_tailed_counts, metasaug_split

SUBSETS = {"cmo": cmo_subset, "glmc": glmc_subset}
META_SUBSET, META_PER_CLASS = "metasaug", 10  # a balanced meta set, whose images are removed from the training set


@dataclass(frozen=True)
class Layout:
    """The layout of one of the two archives."""

    num_classes: int
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels_key: bytes
    names_key: bytes


_FIVE_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = {
    "cifar-10": Layout(
        10, "cifar-10-batches-py", _FIVE_BATCHES, ("test_batch",), "batches.meta", b"labels", b"label_names"
    ),
    "cifar-100": Layout(100, "cifar-100-python", ("train",), ("test",), "meta", b"fine_labels", b"fine_label_names"),
}
EXPECTED_IMAGES = {"train": 50_000, "test": 10_000}


class CifarLT:
    """The subcommand `cifar-lt`."""

    help = "CIFAR-10 or CIFAR-100 from cifar-10-python.tar.gz or cifar-100-python.tar.gz, made long-tailed"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add(
            "--archive",
            type=home_path,
            required=True,
            help="cifar-10-python.tar.gz or cifar-100-python.tar.gz as downloaded",
        )
        add(
            "--split",
            choices=("train", "test"),
            default="train",
            help="which split; the test split is never subsampled (default: train)",
        )
        add(
            "--imb-factor",
            type=finite_number,
            default=0.01,
            help="smallest / largest class of the training set (default: 0.01)",
        )
        add("--imb-type", choices=("exp", "step"), default="exp", help="shape of the tail (default: exp)")
        add(
            "--subset",
            choices=(*SUBSETS, META_SUBSET),
            default="cmo",
            help=f"the paper whose subset to use (default: cmo); {META_SUBSET} also builds its meta set, OUT-meta",
        )

    def from_args(self, namespace: argparse.Namespace) -> dict[str, Source]:
        name, layout = _layout_of(namespace.archive)
        images, labels, class_names = read_cifar(namespace.archive, layout, namespace.split)
        expected = EXPECTED_IMAGES[namespace.split]
        if len(labels) != expected and not namespace.allow_partial:
            raise ValueError(
                f"{namespace.archive}: {len(labels)} {namespace.split} images, the original has {expected}; "
                "download it again, or pass --allow-partial"
            )
        options: dict[str, JSON] = {"split": namespace.split}
        chosen = {"": np.arange(labels.size)}
        if namespace.split == "train":
            options |= {key: getattr(namespace, key) for key in ("imb_factor", "imb_type", "subset")}
            chosen = _chosen(labels, layout.num_classes, namespace)
        inputs = file_stamp(namespace.archive)
        sources: dict[str, Source] = {}
        for suffix, indices in chosen.items():
            samples = [
                SampleRef(f"{name}/{namespace.split}/{index:05d}", int(labels[index]), row)
                for row, index in enumerate(indices.tolist())
            ]
            part = {"part": suffix.removeprefix("-")} if suffix else {}
            sources[suffix] = PixelSource(
                f"{name}-lt", namespace.split, class_names, images[indices], samples, options | part, inputs
            )
        return sources


def _chosen(labels: Int64Array, num_classes: int, namespace: argparse.Namespace) -> dict[str, Int64Array]:
    """The images of each shard set made from the training split, by the suffix of its folder."""
    with_meta = namespace.subset == META_SUBSET
    largest = labels.size // num_classes - with_meta * META_PER_CLASS
    counts = long_tailed_counts(largest, num_classes, namespace.imb_factor, namespace.imb_type)
    if not with_meta:
        return {"": SUBSETS[namespace.subset](labels, counts)}
    train, meta = metasaug_split(labels, counts, META_PER_CLASS)
    return {"": train, "-meta": meta}


def _layout_of(archive: Path) -> tuple[str, Layout]:
    for name, layout in LAYOUTS.items():
        if archive.name.startswith(f"{name}-python"):
            return name, layout
    raise ValueError(
        f"{archive.name}: the file name tells CIFAR-10 from CIFAR-100; "
        "expected cifar-10-python.tar.gz or cifar-100-python.tar.gz"
    )


def read_cifar(archive: Path, layout: Layout, split: str) -> tuple[NDArray[np.uint8], Int64Array, list[str]]:
    """Images uint8 (N, 32, 32, 3), labels int64 (N,) and class names of a split, in the archive's order."""
    batches = layout.train if split == "train" else layout.test
    wanted = [f"{layout.folder}/{file}" for file in (*batches, layout.meta)]
    *contents, meta = (_load(data, f"{archive}: {file}") for file, data in _read_members(archive, wanted).items())
    images, labels = [], []
    for file, content in zip(batches, contents, strict=True):
        rows, row_labels = _checked_batch(content, layout, f"{archive}: {file}")
        # Rows of 3072 bytes: 1024 red, 1024 green, 1024 blue, each a 32 × 32 plane.
        images.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(row_labels)
    return np.concatenate(images), np.concatenate(labels), _checked_names(meta, layout, f"{archive}: {layout.meta}")


def _read_members(archive: Path, wanted: list[str]) -> dict[str, bytes]:
    """The named files of a small tar.gz, in the requested order."""
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such file; give the archive as downloaded with --archive")
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name in wanted else None
                if file is not None:
                    found[member.name] = file.read()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{archive}: not a complete tar.gz ({error}); download it again") from error
    absent = [name for name in wanted if name not in found]
    if absent:
        raise ValueError(f"{archive}: {', '.join(absent)} not inside; expected the original CIFAR archive for Python")
    return {name: found[name] for name in wanted}


class _PickledDtype:
    """An array's type as recorded in a pickle: arguments of numpy.dtype, which is not called."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, _: object) -> None:
        """Byte order and fields, which a one-byte type does not have."""


class _PickledArray:
    """An array as a pickle records it: plain values, checked before numpy sees them.

    numpy's own unpickling allocates any size it is given, and crashes the process on some impossible states.
    """

    _state: object = None

    def __setstate__(self, state: object) -> None:
        self._state = state

    def rows(self) -> NDArray[np.uint8] | None:
        """uint8 (N, M), or None if this is anything else."""
        match self._state:
            case (_, (int(height), int(width)), _PickledDtype(code=("u1" | b"u1")), bool(columns_first), bytes(data)):
                whole = height >= 0 and width >= 0 and len(data) == height * width
                order: Literal["F", "C"] = "F" if columns_first else "C"
                return np.frombuffer(data, np.uint8).reshape(height, width, order=order) if whole else None
        return None


def _empty_array(*_: object) -> _PickledArray:
    return _PickledArray()


# The callables that a pickled array needs; numpy 2 renamed the module of the first.
_ARRAY_PARTS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
}


# The Python implementation: the one in C takes 2 GB for a ten-byte pickle that uses a high memo index.
class _PlainUnpickler(pickle._Unpickler):
    """Loads containers, strings, numbers and numpy arrays, and calls nothing else that a pickle names."""

    # A bytearray takes the memory that the pickle names before its bytes are there; CIFAR has none.
    dispatch: ClassVar = {k: load for k, load in pickle._Unpickler.dispatch.items() if k != pickle.BYTEARRAY8[0]}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, but CIFAR holds only plain containers and arrays; do not trust this file"
            )
        return _ARRAY_PARTS[module, name]


def _load(data: bytes, where: str) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    # The exception that a damaged pickle raises depends on where the damage is.
    except Exception as error:
        raise ValueError(f"{where}: cannot be unpickled: {error}") from error


def _checked_batch(content: Any, layout: Layout, where: str) -> tuple[NDArray[np.uint8], Int64Array]:
    pickled = content.get(b"data") if isinstance(content, dict) else None
    rows = pickled.rows() if isinstance(pickled, _PickledArray) else None
    labels = content.get(layout.labels_key) if isinstance(content, dict) else None
    if rows is None or rows.shape[1] != 3072:
        raise ValueError(f"{where}: no uint8 array (N, 3072) under 'data'")
    if not isinstance(labels, list) or len(labels) != len(rows) or not all(type(label) is int for label in labels):
        raise ValueError(f"{where}: no list of {len(rows)} class numbers under {layout.labels_key.decode()!r}")
    try:
        samples_per_class(labels, layout.num_classes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return rows, np.array(labels, dtype=np.int64)


def _checked_names(content: Any, layout: Layout, where: str) -> list[str]:
    names = content.get(layout.names_key) if isinstance(content, dict) else None
    if not isinstance(names, list) or len(names) != layout.num_classes or not all(type(n) is bytes for n in names):
        raise ValueError(f"{where}: no list of {layout.num_classes} names under {layout.names_key.decode()!r}")
    return [name.decode("utf-8", "replace") for name in names]
