"""Build WebDataset shards from a data set's original files: python -m tools.build_shards SOURCE … --out DIR.

To continue an interrupted build, run the same command again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from shards.build import BuildOptions, build_shard_set
from shards.class_counts import imbalance_ratio
from shards.commandline import FAILED, INTERRUPTED, Parser, UsageError, run_command, tell, whole_number
from shards.format import BAD_FILE, DatasetInfo
from shards.images import ImagePolicy
from shards.object_store import is_url, set_location
from shards.pool import Run, run_tasks
from shards.store_upload import StoreUpload, staging_folder
from tools.sources import SOURCES
from tools.sources.spool import scratch_left


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the build on the command line. Returns the exit status; errors are one line on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    namespace = _parser().parse_args(arguments)
    out = namespace.out
    status = run_command("build_shards", partial(_build, namespace), (RuntimeError,))
    if status == INTERRUPTED:
        print("run the same command again to continue", file=sys.stderr)
    if status in (FAILED, INTERRUPTED):
        _say_what_is_left(out)
    return status


def _build(namespace: argparse.Namespace) -> int:
    if not is_url(namespace.out) and namespace.out.exists() and not namespace.out.is_dir():
        raise UsageError(f"--out {namespace.out} is a file; give a folder for the shards")
    build(namespace)
    return 0


def _say_what_is_left(out: Path | str) -> None:
    """An unpacked archive may be as large as the data set."""
    for spool in [] if is_url(out) else scratch_left(Path(out)):
        size = f"{spool.stat().st_size / 1e9:.1f} GB"
        print(
            f"kept for the next run of this command: the unpacked archive {spool} ({size}); if you do not plan one, "
            "delete its folder",
            file=sys.stderr,
        )


def build(namespace: argparse.Namespace) -> list[str]:
    """Run the build that the parsed options describe; returns the folders or URLs of the sets, --out first."""
    try:
        options = _build_options(namespace)
    except ValueError as error:
        raise UsageError(str(error)) from None
    workers, run = _executor(namespace)
    target = namespace.out
    if is_url(target):
        namespace.out = staging_folder(target)  # sources unpack archives next to it
    sources = SOURCES[namespace.source].from_args(namespace)
    for suffix, source in sources.items():
        place = f"{target}{suffix}"
        folder, store = (staging_folder(place), StoreUpload(place)) if is_url(place) else (Path(place), None)
        tell(f"{place}: {source.name} {source.split}, {len(source.samples):,} images")
        with _ProgressBar() as progress:
            info = build_shard_set(source, folder, options, workers, progress, store, run)
        tell(_summary(place, info))
    for source in sources.values():  # only now: they may share one spooled archive
        source.close()
    return [f"{target}{suffix}" for suffix in sources]


def add_arguments(source: str, parser: argparse.ArgumentParser) -> None:
    """The options of a source, and those of every build."""
    SOURCES[source].add_arguments(parser)
    _add_build_arguments(parser)


def _parser() -> Parser:
    parser = Parser(prog="python -m tools.build_shards", description=__doc__)
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for name, command in SOURCES.items():
        add_arguments(name, sources.add_parser(name, help=command.help, description=command.help))
    return parser


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    defaults, policy = BuildOptions(), ImagePolicy()
    add = parser.add_argument_group("build").add_argument
    add("--out", type=_out, required=True, metavar="DIR|URL", help="folder of the shard set, or s3://bucket/…")
    add("--executor", choices=("pool", "ray"), default="pool", help="processes on this machine, or a Ray cluster")
    add("--ray-address", metavar="HOST:PORT", help="address of the cluster (default: RAY_ADDRESS)")
    add(
        "--workers",
        type=whole_number(1),
        help=f"shards built at a time (default: the number of cores, here {_cores()}, or the cluster's)",
    )
    add("--seed", type=whole_number(0), default=defaults.seed, help="seed of the shuffle (default: %(default)s)")
    add("--allow-partial", action="store_true", help="accept a data set whose size or classes are not as expected")
    add("--check", choices=("full", "header"), default=policy.check, help="decode every image, or read only headers")
    add(
        "--on-bad",
        choices=("fail", "skip", "repair"),
        default=defaults.on_bad,
        help=f"what to do with bad images, listed in {BAD_FILE}",
    )
    add(
        "--encode",
        choices=("keep", "jpeg"),
        default=policy.encode,
        help="keep the original bytes, or re-encode as JPEG",
    )
    add(
        "--max-side",
        type=whole_number(1),
        metavar="PIXELS",
        help="with --encode jpeg: maximum length of the longer side",
    )
    add(
        "--quality",
        type=whole_number(1),
        default=policy.quality,
        help="with --encode jpeg: quality, 1..95 (default: %(default)s)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--shard-size", type=whole_number(1), default=defaults.shard_bytes // 2**20, metavar="MB", help="size of a tar"
    )
    size.add_argument("--samples-per-shard", type=whole_number(1), metavar="N", help="instead of --shard-size")


def _build_options(namespace: argparse.Namespace) -> BuildOptions:
    return BuildOptions(
        policy=ImagePolicy(namespace.check, namespace.encode, namespace.max_side, namespace.quality),
        on_bad=namespace.on_bad,
        shard_bytes=namespace.shard_size * 2**20,
        samples_per_shard=namespace.samples_per_shard,
        seed=namespace.seed,
    )


def _executor(namespace: argparse.Namespace) -> tuple[int, Run]:
    """How many shards to build at a time, and what runs their tasks."""
    if namespace.executor == "pool":
        return namespace.workers or _cores(), run_tasks
    from shards.ray_executor import run_tasks_on_ray

    return namespace.workers or 0, partial(run_tasks_on_ray, address=namespace.ray_address)


def _out(text: str) -> Path | str:
    path = set_location(text)
    if isinstance(path, Path) and not path.name:
        raise argparse.ArgumentTypeError(f"{text!r} has no name; give a folder for the shards")
    return path


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _summary(place: str, info: DatasetInfo) -> str:
    megabytes = sum(shard.bytes for shard in info.shards) / 2**20
    noted = ", ".join(f"{count:,} {what}" for what, count in info.counts.items())
    ratio = f", imbalance {imbalance_ratio(info.samples_per_class):.4g}" if min(info.samples_per_class) else ""
    lines = [
        f"{place}: {info.num_samples:,} images of {len(info.class_names):,} classes{ratio}",
        f"  {len(info.shards)} shards, {megabytes:,.0f} MB; {noted}",
    ]
    if info.counts.keys() & {"skipped", "repaired"}:
        lines.append(f"  bad images and their reasons: {place}/{BAD_FILE}")
    return "\n".join(lines)


class _ProgressBar:
    """Images per second, megabytes per second and time left, on standard error."""

    def __init__(self) -> None:
        seconds = 0.5 if sys.stderr.isatty() else 30  # a log file needs fewer lines than a terminal
        self._bar = tqdm(unit=" images", dynamic_ncols=True, smoothing=0.05, leave=False, mininterval=seconds)
        self._bytes = 0

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start(self, total: int, done: int) -> None:
        self._bar.reset(total)
        self._bar.initial = self._bar.n = done

    def advance(self, samples: int, data_bytes: int) -> None:
        self._bytes += data_bytes
        if self._bar.update(samples):  # the bar was just redrawn
            rate = self._bytes / self._bar.format_dict["elapsed"] / 2**20
            self._bar.set_postfix_str(f"{rate:.1f} MB/s", refresh=False)


if __name__ == "__main__":
    sys.exit(main())
