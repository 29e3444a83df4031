"""`python -m tests.faults --rounds 50 --seed 0`: kill builds and trainings at drawn moments; 0 differences expected.

For fine-tuning: `python -m tests.faults --tuning`. For a training of one's own:
`python -m tests.faults --rounds 4 --steps 20 -- --recipe recipes/cifar10-lt/ncl.yaml`.
"""

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.helpers.builds import Builds
from tests.helpers.rounds import Kind, run_rounds
from tests.helpers.trainings import Trainings


def own_kinds(folder: Path, steps: int, training: list[str]) -> list[Kind]:
    """A training with these options, on one rank and on two."""
    return [Trainings.of_recipe(folder / str(ranks), ranks, steps, training) for ranks in (1, 2)]


def all_kinds(folder: Path, device: str = "cpu") -> list[Kind]:
    """All kinds of work, each in a folder of its own. device: of the trainings on one rank."""
    return [
        Builds("worker", folder / "build-worker"),
        Builds("parent", folder / "build-parent"),
        Trainings.small("training", folder / "training", 1, device=device),
        Trainings.small(
            "training, images decoded by DALI", folder / "dali", 1, device=device, **{"data.executor": "dali"}
        ),
        Trainings.small("training on two ranks", folder / "two", 2),
    ]


def tuning_kinds(folder: Path) -> list[Kind]:
    """Fine-tuning under accumulation, each on one rank and on two."""
    squares = {"data.preset": "backbone-mda", "method.tuned": "lora"}
    adamw = {"optimizer.kind": "adamw", "optimizer.lr": 1e-3, "optimizer.clip_norm": 1.0, "optimizer.decay": "matrices"}
    features = {"data.preset": "backbone-plain", "method.tuned": "head", "method.cached_features": "true"}
    ways = {
        "AdamW, annealed squares": {**squares, **adamw},
        "SGD, annealed squares, average": {**squares, "method.tuned": "adaptformer", "ema_decay": 0.9},
        "cached features": features,
        "cached features, AdamW": {**features, **adamw},
    }
    return [
        Trainings.tuning(f"{way}, {_ranks(ranks)}", folder / f"{way}-{ranks}", ranks, **changes)
        for way, changes in ways.items()
        for ranks in (1, 2)
    ]


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


def main() -> int:
    """Run the rounds and print their figures; 1 where anything differed."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__, formatter_class=formatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20, help="length of your own training run (see `training`)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"), help="of trainings on one rank")
    parser.add_argument("--kind", help="this kind of work alone, by its name in the table")
    parser.add_argument("--tuning", action="store_true", help="kill fine-tuning runs instead")
    parser.add_argument("training", nargs="*", help="options of your own training run, after --")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps is {options.steps}; at least 2 are needed to be killed between them")
    # One core for all, so that each process takes one thread: threads that wait for each other by spinning slow small
    # work down ten times where others use the machine too.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        own = options.training
        made_kinds = tuning_kinds if options.tuning else partial(all_kinds, device=options.device)
        kinds = own_kinds(Path(folder), options.steps, own) if own else made_kinds(Path(folder))
        names = [kind.name for kind in kinds]
        if options.kind is not None:
            kinds = [kind for kind in kinds if kind.name == options.kind]
        if not kinds:
            parser.error(f"--kind is {options.kind!r}, expected one of {'; '.join(names)}")
        figures = run_rounds(kinds, options.rounds, options.seed)
    differences = [difference for sums in figures.values() for difference in sums.differences]
    print(f"{'kind of fault':<42} {'rounds':>6} {'kills':>6} {'differences':>11} {'minutes':>8}")
    for name, sums in figures.items():
        print(f"{name:<42} {sums.rounds:>6} {sums.kills:>6} {len(sums.differences):>11} {sums.seconds / 60:>8.1f}")
    print(*differences, sep="\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
