"""Rounds of faults over several kinds of work, and their figures."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Round:
    """What came of one round: processes killed, and every difference from the uninterrupted work."""

    kills: int
    differences: list[str]


class Kind(Protocol):
    """A kind of work that can be killed."""

    name: str

    def round(self, number: int, rng: random.Random) -> Round:
        """Do the work once under faults drawn from `rng`."""
        ...


@dataclass
class Figures:
    """Sums over the rounds of one kind."""

    rounds: int = 0
    kills: int = 0
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)


def run_rounds(kinds: Sequence[Kind], rounds: int, seed: int) -> dict[str, Figures]:
    """So many rounds, the kinds in turn; round i of a seed draws the same faults whatever else runs."""
    figures = {kind.name: Figures() for kind in kinds}
    for number in range(rounds):
        kind = kinds[number % len(kinds)]
        started = time.monotonic()
        done = kind.round(number, random.Random(f"{seed} {number}"))
        sums = figures[kind.name]
        sums.rounds += 1
        sums.kills += done.kills
        sums.seconds += time.monotonic() - started
        sums.differences += [f"round {number}: {difference}" for difference in done.differences]
    return figures
