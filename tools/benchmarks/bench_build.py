"""Images per second when building shards from files, compared with other ways to read and write the same bytes."""

import hashlib
import importlib
import os
import shutil
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest import mock

import torch
from PIL import Image

from shards import writer
from shards.build import BuildOptions, build_shard_set
from shards.images import ImagePolicy
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench, source_of, write_class_folders
from tools.benchmarks.measuring import Target, Variant, compare, rate_of

CONCATENATE = "read and concatenate"
HEADER = "shards, --check header"
FULL_CHECK = "shards, --check full (default)"
ENCODE = "shards, --encode jpeg --max-side 256"
DECODE = "PIL decode, one core"
_CPU = torch.device("cpu")
_USUAL_SAMPLES_PER_SHARD = 2500  # 256 MB of photographs
_FEW = 40  # images of a build that is all start and end
_HASHED = 2000  # images of builds with other checksums
AS_IT_IS = "zlib.crc32 and hashlib.sha256, as it is"


def run(bench: Bench) -> Report:
    """Copying is measured twice: with files that have to be read from disk, as for a data set that was just
    downloaded or is larger than memory, and with files cached in memory.
    """
    scale = bench.scale
    settings = {
        "cores": bench.cores,
        "rounds": scale.rounds,
        "copied_images": scale.copied_images,
        "cached_images": scale.cached_images,
        "checked_images": scale.checked_images,
    }
    report = Report(
        "build", bench.describe(), settings, notes={"file_system": _file_system(bench.scratch)}, saved_to=bench.saved_to
    )
    subjects = (
        (_starting, _FEW),
        (_copying_from_disk, scale.copied_images),
        (_copying_from_memory, scale.cached_images),
        (_checking, scale.checked_images),
        (_hashing, min(_HASHED, scale.checked_images)),
    )
    for measure, images in subjects:
        folder = write_class_folders(bench.scratch / measure.__name__, images, bench.given)
        os.sync()  # no variant should wait for these files, and only data on disk can be dropped from memory
        try:
            measure(_Build(folder, bench), report)
        finally:
            shutil.rmtree(folder)
    return report


class _Build:
    """Ways to write a folder's images to another folder."""

    def __init__(self, folder: Path, bench: Bench):
        self.folder, self.cores, self.rounds = folder, bench.cores, bench.scale.rounds
        self.out = bench.scratch / "built"
        self.source = source_of(folder)
        self.paths = [folder / sample.name for sample in self.source.samples]
        self.from_disk = False

    def rate(self, action: Callable[[], object]) -> float:
        """Images per second."""
        return rate_of(action, 1, len(self.paths), _CPU, warm_up=0)

    def fresh(self, write: Callable[[], object]) -> Variant:
        """A variant that writes to `out`, a new folder, from files on disk or in memory."""

        def once() -> float:
            self.out.mkdir()
            if self.from_disk:
                _forget(self.paths)
            try:
                return self.rate(write)
            finally:
                shutil.rmtree(self.out)

        return once

    def shards(self, policy: ImagePolicy, workers: int) -> Variant:
        """A variant that builds shards of the usual size, but at least four per worker, as in any data set."""
        share = -(-len(self.paths) // (4 * self.cores))
        options = BuildOptions(policy, samples_per_shard=min(share, _USUAL_SAMPLES_PER_SHARD))
        return self.fresh(lambda: build_shard_set(self.source, self.out, options, workers))


def _starting(build: _Build, report: Report) -> None:
    """The fixed cost of a build: starting the workers, and writing the files of the whole set."""
    build_once = build.shards(ImagePolicy("header"), build.cores)
    seconds = median(len(build.paths) / build_once() for _ in range(build.rounds))
    report.notes[f"seconds_of_a_build_of_{len(build.paths)}_images"] = round(seconds, 3)


def _copying_from_disk(build: _Build, report: Report) -> None:
    out, paths = build.out, build.paths
    build.from_disk = True
    others: dict[str, Variant] = {
        "cp -r": build.fresh(lambda: subprocess.run(["cp", "-r", build.folder, out], check=True)),
        "tarfile": build.fresh(lambda: _tar(paths, out / "all.tar")),
        "webdataset.ShardWriter": build.fresh(lambda: _webdataset(paths, out)),
    }
    _compare_with_concatenating(build, report, "on the disk", others)


def _copying_from_memory(build: _Build, report: Report) -> None:
    _compare_with_concatenating(build, report, "in memory", {})


def _compare_with_concatenating(build: _Build, report: Report, where: str, others: dict[str, Variant]) -> None:
    many = f"{HEADER}, {build.cores} workers"
    ours: dict[str, Variant] = {
        CONCATENATE: build.fresh(lambda: _concatenate(build.paths, build.out / "all")),
        HEADER: build.shards(ImagePolicy("header"), 1),
        many: build.shards(ImagePolicy("header"), build.cores),
    }
    title = f"writing the bytes as they are, {len(build.paths):,} files {where}"
    table = compare(title, "images/s", ours | others, build.rounds)
    report.add(table)
    measure = f"time: shards, header check, {build.cores} workers / read and concatenate, files {where}"
    report.targets.append(Target(measure, 1 / table.ratio(many, CONCATENATE), 1.25, at_most=True))


def _checking(build: _Build, report: Report) -> None:
    cores = build.cores
    many = f"{FULL_CHECK}, {cores} workers"
    encoding = ImagePolicy("full", "jpeg", max_side=256)
    variants: dict[str, Variant] = {
        DECODE: lambda: build.rate(lambda: _decode(build.paths)),
        FULL_CHECK: build.shards(ImagePolicy("full"), 1),
        many: build.shards(ImagePolicy("full"), cores),
        ENCODE: build.shards(encoding, 1),
        f"{ENCODE}, {cores} workers": build.shards(encoding, cores),
    }
    table = compare("checking every image", "images/s", variants, build.rounds)
    report.add(table)
    report.targets.append(Target("shards, full check / (PIL decode x cores)", table.ratio(many, DECODE) / cores, 0.9))


def _hashing(build: _Build, report: Report) -> None:
    """What other checksums would change: their speed alone, and that of a whole build in one process. By CPU time."""
    images = [path.read_bytes() for path in build.paths[:200]]
    others = _other_crc32s(report)
    functions: dict[str, Callable[[bytes], object]] = {"zlib.crc32": zlib.crc32, **others, "hashlib.sha256": _sha256}
    alone: dict[str, Variant] = {name: partial(_hash_rate, function, images) for name, function in functions.items()}
    report.add(compare("checksums of images, one core", "GB/cpu-s", alone, build.rounds))
    once = build.shards(ImagePolicy("header"), 1)
    nothing = SimpleNamespace(update=lambda data: None, hexdigest=lambda: "")
    replaced = {name: ("zlib", SimpleNamespace(crc32=crc32)) for name, crc32 in others.items()}
    replaced["no crc32"] = ("zlib", SimpleNamespace(crc32=lambda data: 0))
    replaced["no sha256"] = ("hashlib", SimpleNamespace(sha256=lambda: nothing))
    builds: dict[str, Variant] = {AS_IT_IS: partial(_build_rate, build, once)}
    for name, (module, replacement) in replaced.items():
        builds[name] = partial(_build_rate_with, module, replacement, build, once)
    title = f"{HEADER}, one worker, files in memory, by checksum"
    report.add(compare(title, "images/cpu-s", builds, build.rounds))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _other_crc32s(report: Report) -> dict[str, Callable[[bytes], int]]:
    """By name, of the packages that are installed."""
    found: dict[str, Callable[[bytes], int]] = {}
    for name, package, module in (("isal", "isal", "isal_zlib"), ("zlib-ng", "zlib_ng", "zlib_ng")):
        try:
            found[name] = importlib.import_module(f"{package}.{module}").crc32
        except ImportError:
            report.notes[name] = "absent: pip install longtail[bench]"
    return found


def _hash_rate(function: Callable[[bytes], object], images: list[bytes]) -> float:
    """GB per second of CPU time."""
    started = time.process_time()
    for data in images:
        function(data)
    return sum(map(len, images)) / 1e9 / (time.process_time() - started)


def _build_rate(build: _Build, once: Variant) -> float:
    """Images per second of this process's CPU time; that in which the system brings them to the disk is not in it."""
    started = time.process_time()
    once()
    return len(build.paths) / (time.process_time() - started)


def _build_rate_with(module: str, replacement: object, build: _Build, once: Variant) -> float:
    """The same with something else in place of a module that writes shards."""
    with mock.patch.object(writer, module, replacement):
        return _build_rate(build, once)


def _file_system(folder: Path) -> str:
    """Type of the file system that holds a folder, such as ext4 or tmpfs."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    holding = [mount for mount in mounts if folder.resolve().is_relative_to(mount[0])]
    return max(holding, key=lambda mount: len(mount[0]))[1]


def _forget(paths: list[Path]) -> None:
    """Drop the files from the page cache; a file system in memory (tmpfs) keeps them."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _concatenate(paths: list[Path], out: Path) -> None:
    with out.open("wb") as file:
        for path in paths:
            file.write(path.read_bytes())
        file.flush()
        os.fsync(file.fileno())  # as shards are


def _tar(paths: list[Path], out: Path) -> None:
    with tarfile.open(out, "w") as tar:
        for path in paths:
            tar.add(path, path.name)


def _webdataset(paths: list[Path], out: Path) -> None:
    from webdataset import ShardWriter

    with ShardWriter(f"{out}/%06d.tar", maxsize=256 * 2**20, verbose=0) as writer:
        for number, path in enumerate(paths):
            label = int(path.parent.name.removeprefix("class"))
            writer.write({"__key__": f"{number:09d}", "jpg": path.read_bytes(), "cls": label})


def _decode(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB")
