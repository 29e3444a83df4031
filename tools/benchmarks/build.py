"""Images a second of building shards from files, against reading and writing the same bytes in other ways."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from shards.build import BuildOptions, build_shard_set
from shards.images import ImagePolicy
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Target, Variant, compare, rate_of
from tools.benchmarks.report import Report

CONCATENATE = "read and concatenate"
HEADER = "shards, --check header"
FULL_CHECK = "shards, --check full (default)"
DECODE = "PIL decode, one core"
_CPU = torch.device("cpu")


def run(bench: Bench) -> Report:
    """Page cache warm: what is compared is the work. A cold disk adds the same reading to every variant."""
    source = bench.source()
    paths = [bench.folder / sample.name for sample in source.samples]
    out = bench.scratch / "built"
    cores = bench.cores

    def fresh(write: Callable[[], object]) -> Variant:
        def once() -> float:
            out.mkdir()
            try:
                return rate_of(write, 1, len(paths), _CPU, warm_up=0)
            finally:
                shutil.rmtree(out)

        return once

    def shards(options: BuildOptions, workers: int = 1) -> Variant:
        return fresh(lambda: build_shard_set(source, out, options, workers))

    report = Report("build", bench.describe(), {"cores": cores, "rounds": bench.scale.rounds})
    # As few and as large shards as keep all cores busy: real ones have 256 MB, and each waits for the disk at its end.
    header, full, small = (
        bench.build_options(policy, 1)
        for policy in (ImagePolicy("header"), ImagePolicy("full"), ImagePolicy("full", "jpeg", max_side=256))
    )
    variants: dict[str, Variant] = {
        CONCATENATE: fresh(lambda: _concatenate(paths, out / "all")),
        "cp -r": fresh(lambda: subprocess.run(["cp", "-r", bench.folder, out], check=True)),
        "tarfile": fresh(lambda: _tar(paths, out / "all.tar")),
        "webdataset.ShardWriter": fresh(lambda: _webdataset(paths, out)),
        HEADER: shards(header),
        f"{HEADER}, {cores} workers": shards(header, cores),
    }
    table = compare("writing the bytes as they are", "images/s", variants, bench.scale.rounds)
    report.tables.append(table)
    best = max(table.ratio(name, CONCATENATE) for name in (HEADER, f"{HEADER}, {cores} workers"))
    report.targets.append(Target("time: shards, header check / read and concatenate", 1 / best, 1.25, at_most=True))

    variants = {
        DECODE: lambda: rate_of(lambda: _decode(paths), 1, len(paths), _CPU, warm_up=0),
        FULL_CHECK: shards(full),
        f"{FULL_CHECK}, {cores} workers": shards(full, cores),
        f"shards, --encode jpeg --max-side 256, {cores} workers": shards(small, cores),
    }
    table = compare("checking every image", "images/s", variants, bench.scale.rounds)
    report.tables.append(table)
    ratio = max(table.ratio(FULL_CHECK, DECODE), table.ratio(f"{FULL_CHECK}, {cores} workers", DECODE) / cores)
    report.targets.append(Target("shards, full check / (PIL decode x cores)", ratio, 0.9))
    return report


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
