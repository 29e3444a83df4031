"""Everything that needs a GPU, in pieces: each has a time limit, writes results as it runs, and fails independently.

    benchmarks/gpu/run.sh --out OUT [--pack OUT.tar.gz] [--images FOLDER_OF_JPEGS] [--cifar10 cifar10-jpeg.zip]

On one H100 or H200 with 16 cores everything should take under 25 minutes. `--toy` runs every piece at a trivial size,
even on a CPU, so no GPU time is lost to a typo.
"""

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch

from train.run_folder import write_json

METHODS = ("ce", "ce-cmo", "bs", "bs-cmo")
SEEDS = (0, 1, 2)
_PACKED = {".json", ".jsonl", ".log", ".yaml", ".csv"}
_PACKED_BYTES = 4_000_000  # of a file; checkpoints and shards stay


@dataclass(frozen=True)
class Settings:
    """The settings that all pieces share.

    Args:
        out: the folder for all files.
        images: JPEGs to measure on; None generates them.
        cifar10: a zip or folder with images in train/CLASS/ and test/CLASS/; None omits that piece.
        toy: only check that everything runs.
    """

    out: Path
    images: Path | None
    cifar10: Path | None
    toy: bool


Commands = Callable[[Settings], Iterator[list[str]]]


@dataclass(frozen=True)
class Piece:
    """A part of the day: its commands run one after another, all within `seconds`."""

    name: str
    seconds: int
    commands: Commands


def _python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _bench(subject: str) -> Commands:
    def commands(settings: Settings) -> Iterator[list[str]]:
        size = "--toy" if settings.toy else "--quick"
        given = [] if settings.images is None else ["--images", settings.images]
        yield _python("tools.bench", subject, "--out", settings.out, size, *given)

    return commands


def _probe(settings: Settings) -> Iterator[list[str]]:
    size = ["--toy"] if settings.toy else []
    given = [] if settings.images is None else ["--images", settings.images]
    yield _python("tools.benchmarks.gpu_probe", "--out", settings.out / "probe.json", *size, *given)


def _gpu_tests(settings: Settings) -> Iterator[list[str]]:
    # Without a GPU tests are only collected: a toy run detects import errors.
    only = ["--collect-only", "-q"] if settings.toy and not torch.cuda.is_available() else ["-q"]
    workers = ["-n", 4] if find_spec("xdist") and torch.cuda.is_available() else []
    # Without the project's own options, which take plugins that such a machine need not have.
    yield _python(
        "pytest", "-o", "addopts=", "-m", "gpu", *only, *workers, "-p", "no:cacheprovider", *_gpu_test_files()
    )


def _gpu_test_files() -> list[Path]:
    """Others may import what such a machine lacks, and collecting them all takes half of the time."""
    return sorted(path for path in Path("tests").rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8"))


def _cifar(settings: Settings) -> Iterator[list[str]]:
    """200 epochs of CE, CE + CMO, BS and BS + CMO, as many seeds as there is time for; resident images, step graphs."""
    if settings.cifar10 is None:
        return
    data = settings.out / "cifar10-lt"
    for split in ("train", "test"):
        tail = ["--imb-factor", 0.01] if split == "train" and not settings.toy else []
        source = ["imagefolder", "--images", settings.cifar10, "--split-dir", split, *tail]
        yield _python("tools.build_shards", *source, "--out", data / split)
    short = ["--epochs", 1, "--max_steps", 2, "--batch_size", 4, "--model.width", 4] if settings.toy else []
    on_gpu = ["--cuda_graphs", "true", "--mixed_precision", "bf16"] if torch.cuda.is_available() else []
    for seed in SEEDS[:1] if settings.toy else SEEDS:
        for method in METHODS[-1:] if settings.toy else METHODS:
            run_dir = settings.out / f"cifar10-lt-{method}-seed{seed}"
            options = ["--data.train", data / "train", "--data.test", data / "test", "--seed", seed]
            options += ["--evaluate_every", 200, "--run_dir", run_dir, "--resume", "auto", "--trackers", "[]"]
            yield _python("train", "--recipe", f"recipes/cifar10-lt/{method}.yaml", *options, *on_gpu, *short)


def _resumed(settings: Settings) -> Iterator[list[str]]:
    """Twelve steps of two streams through DALI, killed and resumed, against the same steps in one go."""
    kind = ["--kind", "training, images decoded by DALI", "--device", "auto"]
    yield _python("tests.faults", *kind, "--rounds", 1, "--seed", 1)


PIECES = (
    Piece("probe", 50, _probe),
    Piece("tests", 180, _gpu_tests),  # 84 s on an H200, beside other work
    Piece("paste", 50, _bench("paste")),
    # Seen on an H200: after four and a half minutes the last table of `train`, with the network compiled, was missing.
    Piece("train", 420, _bench("train")),  # first of the long ones: it has the figure that all the others explain
    Piece("step", 300, _bench("step")),
    Piece("loader", 300, _bench("loader")),
    Piece("cifar10-lt", 120, _cifar),
    Piece("resumed", 80, _resumed),
)


def run_piece(piece: Piece, settings: Settings) -> dict[str, Any]:
    """Run a piece's commands within its time limit; returns the outcome.

    Their output is in OUT/NAME.log in any case.
    """
    started = time.monotonic()
    limit = piece.seconds * (10 if settings.toy else 1)  # a toy run may share two cores with other work
    outcome = "done"
    with (settings.out / f"{piece.name}.log").open("w", encoding="utf-8") as log:
        for command in piece.commands(settings):
            print(f"$ {' '.join(command)}", file=log, flush=True)
            left = limit - (time.monotonic() - started)
            status = _status(command, log, max(1.0, left))
            if status is None:
                outcome = f"stopped after {limit} s"
                break
            if status:
                outcome = f"exit status {status} of {' '.join(command[1:4])}"
                break
    return {"piece": piece.name, "outcome": outcome, "seconds": round(time.monotonic() - started, 1)}


def _status(command: Sequence[str], log: IO[str], seconds: float) -> int | None:
    """The exit status of a command, or None where it had to be ended, with all that it started: what lives on would
    hold the GPU beside the next piece.
    """
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def pack(folder: Path, archive: Path) -> None:
    """All small files of a folder in one .tar.gz, complete or as it was before: some machines hand back a few files."""
    unfinished = archive.with_name(f"{archive.name}.part")
    with tarfile.open(unfinished, "w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            if path.suffix in _PACKED and path.is_file() and path.stat().st_size <= _PACKED_BYTES:
                tar.add(path, path.relative_to(folder))
    unfinished.replace(archive)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pieces in order; exit status 1 if one failed."""
    options = _parser().parse_args(arguments)
    settings = Settings(options.out, options.images, options.cifar10, options.toy)
    settings.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for piece in (p for p in PIECES if not options.only or p.name in options.only):
        outcomes.append(run_piece(piece, settings))
        print("{piece}: {outcome}, {seconds} s".format(**outcomes[-1]), flush=True)
        write_json(settings.out / "pieces.json", outcomes)
        if options.pack is not None:
            pack(settings.out, options.pack)
    return 0 if all(outcome["outcome"] == "done" for outcome in outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu/run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for all files")
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEGs to measure on (default: generated ones)")
    parser.add_argument("--cifar10", type=Path, metavar="ZIP", help="images under train/CLASS and test/CLASS")
    parser.add_argument(
        "--only", nargs="+", choices=[p.name for p in PIECES], metavar="PIECE", help="run only these pieces"
    )
    parser.add_argument(
        "--toy", action="store_true", help="run everything at a trivial size, only to check that it works"
    )
    parser.add_argument(
        "--pack", type=Path, metavar="FILE", help="after each piece, a .tar.gz of all small files so far"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
