"""Everything that needs a GPU, in pieces: each has a time limit, writes results as it runs, and fails independently.

    benchmarks/gpu/run.sh --out OUT [--images FOLDER_OF_JPEGS] [--cifar10 cifar10-jpeg.zip]

On one H100 or H200 with 16 cores everything should take under 25 minutes. `--toy` runs every piece at a trivial size,
even on a CPU, so no GPU time is lost to a typo.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train.run_folder import write_json

METHODS = ("ce", "ce-cmo", "bs", "bs-cmo")
SEEDS = (0, 1, 2)


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
        size = ["--toy"] if settings.toy else []
        given = [] if settings.images is None else ["--images", settings.images]
        yield _python("tools.bench", subject, "--out", settings.out, *size, *given)

    return commands


def _probe(settings: Settings) -> Iterator[list[str]]:
    size = ["--toy"] if settings.toy else []
    given = [] if settings.images is None else ["--images", settings.images]
    yield _python("tools.benchmarks.gpu_probe", "--out", settings.out / "probe.json", *size, *given)


def _gpu_tests(settings: Settings) -> Iterator[list[str]]:
    # Without a GPU tests are only collected: a toy run detects import errors.
    only = ["--collect-only", "-q"] if settings.toy and not torch.cuda.is_available() else ["-q"]
    yield _python("pytest", "-m", "gpu", *only, "-p", "no:cacheprovider", "tests/pipeline", "tests/train")


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
    """Twenty steps of two streams through DALI, killed and resumed, compared with the same steps uninterrupted."""
    rounds = ["--rounds", 1, "--steps", 2 if settings.toy else 20, "--seed", 1]
    yield _python("tests.faults", *rounds)


PIECES = (
    Piece("probe", 180, _probe),
    Piece("tests", 240, _gpu_tests),
    Piece("paste", 60, _bench("paste")),
    Piece("step", 240, _bench("step")),
    Piece("loader", 240, _bench("loader")),
    Piece("train", 240, _bench("train")),
    Piece("cifar10-lt", 240, _cifar),
    Piece("resumed", 60, _resumed),
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
            try:
                ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=max(1.0, left))
            except subprocess.TimeoutExpired:
                outcome = f"stopped after {limit} s"
                break
            if ended.returncode:
                outcome = f"exit status {ended.returncode} of {' '.join(command[1:4])}"
                break
    return {"piece": piece.name, "outcome": outcome, "seconds": round(time.monotonic() - started, 1)}


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
    return parser


if __name__ == "__main__":
    sys.exit(main())
