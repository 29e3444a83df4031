"""`python -m tests.faults --rounds 50 --seed 0`: kill builds and trainings at drawn moments; 0 differences expected."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.faults.builds import Builds
from tests.faults.rounds import Kind, run_rounds
from tests.faults.trainings import Trainings


def kinds(folder: Path) -> list[Kind]:
    """All kinds of work, each in a folder of its own."""
    return [
        Builds("worker", folder / "build-worker"),
        Builds("parent", folder / "build-parent"),
        Trainings("training", folder / "training", ranks=1, changes={}),
        Trainings("training, images decoded by DALI", folder / "dali", ranks=1, changes={"data.executor": "dali"}),
        Trainings("training on two ranks", folder / "two", ranks=2, changes={}),
    ]


def main() -> int:
    """Run the rounds and print their figures; 1 where anything differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # One core for all, so that each process takes one thread: threads that wait for each other by spinning slow small
    # work down ten times where others use the machine too.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        figures = run_rounds(kinds(Path(folder)), options.rounds, options.seed)
    differences = [difference for sums in figures.values() for difference in sums.differences]
    print(f"{'kind of fault':<34} {'rounds':>6} {'kills':>6} {'differences':>11} {'minutes':>8}")
    for name, sums in figures.items():
        print(f"{name:<34} {sums.rounds:>6} {sums.kills:>6} {len(sums.differences):>11} {sums.seconds / 60:>8.1f}")
    print(*differences, sep="\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
