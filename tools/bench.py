"""Measure how fast this project is on this machine, compared with the usual alternatives.

python -m tools.bench all --quick --out benchmarks/results
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch is imported, as in train/__main__.py

import argparse
import importlib
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.benchmarks.material import Bench

SUBJECTS = {
    "build": "shards from files, against copying, tar and webdataset",
    "feed": "the cost of planning and feeding without decoding; class-weighted draws from up to 10^8 samples",
    "loader": "whole loaders: this one, DataLoader, torchvision v2, webdataset, DALI's reader, FFCV if installed",
    "scaled": "decoding photographs at a fraction of their size, against full size",
    "paste": "pasting and normalising a batch, against separate operations and a plain copy",
    "step": "the training step: Accelerate's loop against a bare loop, precisions, layouts, compilation",
    "train": "training from shards, against resident data and the structure of the official code",
    "evaluate": "evaluation, against a DataLoader with PIL",
    "startup": "from the command to the first step, by part",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks. Returns the exit code; input errors are one line on standard error."""
    # Imported here: workers that build shards import this module again and should not wait for torch.
    import torch

    from tools.benchmarks.material import FULL, QUICK, QUICK_ON_GPU, TOY, Bench

    namespace = _parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "tools.bench", *(arguments or sys.argv[1:])])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    try:
        if namespace.scratch is not None:
            namespace.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=namespace.scratch) as scratch:
            quick = QUICK_ON_GPU if device.type == "cuda" else QUICK
            scale = TOY if namespace.toy else quick if namespace.quick else FULL
            saved_to = None if namespace.out is None else (namespace.out, command)
            bench = Bench(Path(scratch), namespace.images, scale, device, cores, tuple(namespace.photo_size), saved_to)
            if namespace.subject != "all":
                failed = _measure(namespace.subject, bench)
            else:
                failed = [name for subject in SUBJECTS for name in _measured_or_not(subject, bench)]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if failed:
        print(f"error: not measured: {', '.join(failed)}; what went wrong is printed above", file=sys.stderr)
    return 1 if failed else 0


def _measure(subject: str, bench: "Bench") -> list[str]:
    """Names of what could not be measured."""
    report = importlib.import_module(f"tools.benchmarks.bench_{subject}").run(bench)
    report.print()
    if bench.saved_to is not None:
        print(f"  written to {report.write(*bench.saved_to)}")
    return report.failed


def _measured_or_not(subject: str, bench: "Bench") -> list[str]:
    """The same: if one subject fails, the others are still measured."""
    try:
        return _measure(subject, bench)
    except Exception:
        traceback.print_exc()
        return [subject]


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:9} {text}" for name, text in SUBJECTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench",
        description=f"{__doc__}\nsubjects:\n{listed}\n  {'all':9} everything that this machine supports",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subject", choices=[*SUBJECTS, "all"], metavar="SUBJECT")
    parser.add_argument("--quick", action="store_true", help="fewer images, batches and rounds: minutes on two cores")
    parser.add_argument("--toy", action="store_true", help="too small to measure anything: only checks that it runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/SUBJECT.json")
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEGs to measure on (default: generated ones)")
    parser.add_argument(
        "--photo-size",
        type=int,
        nargs=2,
        default=(500, 375),
        metavar=("WIDTH", "HEIGHT"),
        help="approximate size of generated images (default: 500 375; iNaturalist 2018 has 800 600)",
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="folder for temporary data: 4 GB, or 16 GB without --quick"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
