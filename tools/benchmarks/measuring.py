"""Comparing variants on a machine whose speed drifts: interleaved rounds, ratios within a round, median and spread."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

Measured = TypeVar("Measured")
Variant = Callable[[], float]
"""Runs once, warm-up included, and returns its rate: units of work a second of the part that counts."""


@dataclass(frozen=True)
class Row:
    """One variant's rates, one a round, and its ratio to the base variant of the same round (above 1 is faster)."""

    name: str
    rates: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Median over the rounds."""
        return median(self.rates)

    @property
    def ratio(self) -> float:
        """Median over the rounds of the ratio within a round."""
        return median(self.ratios)

    def as_json(self) -> dict[str, Any]:
        """All figures, rounded to what they are worth."""
        return {
            "name": self.name,
            "median": _rounded(self.rate),
            "rates": [_rounded(rate) for rate in self.rates],
            "ratio": _rounded(self.ratio),
            "ratio_spread": [_rounded(min(self.ratios)), _rounded(max(self.ratios))],
        }


@dataclass(frozen=True)
class Table:
    """Variants that were measured against each other; `base` is the one whose ratio is 1, `unit` that of the rates."""

    title: str
    unit: str
    base: str
    rows: tuple[Row, ...]

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def ratio(self, name: str, base: str) -> float:
        """Median over the rounds of the ratio of two variants."""
        return median(a / b for a, b in zip(self[name].rates, self[base].rates, strict=True))

    def as_json(self) -> dict[str, Any]:
        """As in the result files."""
        rows = [row.as_json() for row in self.rows]
        return {"title": self.title, "unit": self.unit, "base": self.base, "rows": rows}

    def lines(self) -> list[str]:
        """For people."""
        width = max(len(row.name) for row in self.rows)
        lines = [self.title, f"  {'':{width}}  {self.unit:>12}  ratio [spread over {len(self.rows[0].rates)} rounds]"]
        for row in self.rows:
            spread = f"[{min(row.ratios):.2f} .. {max(row.ratios):.2f}]"
            lines.append(f"  {row.name:{width}}  {row.rate:12,.4g}  {row.ratio:5.2f} {spread}")
        return lines


@dataclass(frozen=True)
class Target:
    """What a figure is expected to be: at least (or at most) `limit`."""

    measure: str
    value: float
    limit: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure is as expected."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def as_json(self) -> dict[str, Any]:
        """As in the result files."""
        relation = "<=" if self.at_most else ">="
        return {"measure": self.measure, "value": _rounded(self.value), "target": f"{relation} {self.limit:g}"} | {
            "met": self.met
        }


def compare(title: str, unit: str, variants: Mapping[str, Variant], rounds: int) -> Table:
    """Run every variant once a round, in turn, each round beginning with another one. The first named is the base."""
    return _table(title, unit, _measured(variants, rounds))


def compare_with_cpu(
    title: str, variants: Mapping[str, Callable[[], tuple[float, float]]], rounds: int
) -> tuple[Table, Table]:
    """The same for variants that return images per second and per second of CPU time: a table of each."""
    both = _measured(variants, rounds)
    by_clock, by_cpu = ({name: [pair[i] for pair in pairs] for name, pairs in both.items()} for i in (0, 1))
    return _table(title, "images/s", by_clock), _table(f"{title}, by CPU time", "images/cpu-s", by_cpu)


def _measured(variants: Mapping[str, Callable[[], Measured]], rounds: int) -> dict[str, list[Measured]]:
    names = list(variants)
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(variants[name]())
    return found


def _table(title: str, unit: str, rates: Mapping[str, list[float]]) -> Table:
    base = next(iter(rates))
    rows = (
        Row(name, tuple(found), tuple(a / b for a, b in zip(found, rates[base], strict=True)))
        for name, found in rates.items()
    )
    return Table(title, unit, base, tuple(rows))


def rate_of(action: Callable[[], object], repeats: int, units: float, device: torch.device, warm_up: int = 1) -> float:
    """Units a second of an action that does `units` of work a call."""
    for _ in range(warm_up):
        action()
    started = now(device)
    for _ in range(repeats):
        action()
    return units * repeats / (now(device) - started)


def rate_of_batches(batches: Iterable[int], warm_up: int, counted: int, device: torch.device) -> float:
    """Units a second of a stream that says the size of each batch. The first `warm_up` batches only fill the queues.

    The stream is left where it is after `warm_up` + `counted` batches.
    """
    return rates_of_batches(batches, warm_up, counted, device)[0]


def rates_of_batches(batches: Iterable[int], warm_up: int, counted: int, device: torch.device) -> tuple[float, float]:
    """The same, and units per second of the CPU time of this process and its children, which hold queues as full at
    the end as at the start.
    """
    iterator = iter(batches)
    for _ in range(warm_up):
        next(iterator)
    used, started = cpu_seconds(), now(device)
    units = sum(next(iterator) for _ in range(counted))
    ended = now(device)
    return units / (ended - started), units / max(cpu_seconds() - used, 0.01)  # what the system counts in


def cpu_seconds() -> float:
    """CPU time, user and system, that this process and all processes it started have used so far.

    Those that still run are asked through /proc, in hundredths; those that have ended count with their parents.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    own = os.times()
    total = time.process_time() + own.children_user + own.children_system
    unseen = _children(os.getpid())
    while unseen:
        pid = unseen.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        total += sum(map(int, fields[11:15])) / ticks
        unseen += _children(pid)
    return total


def _children(pid: int) -> list[int]:
    """Process ids of the children that the threads of a process have started."""
    with contextlib.suppress(OSError):
        files = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for file in files for child in file.read_text(encoding="utf-8").split()]
    return []


def now(device: torch.device) -> float:
    """Seconds, after the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
