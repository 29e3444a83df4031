"""Comparing variants on a machine whose speed drifts: interleaved rounds, ratios within a round, median and spread."""

import contextlib
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

Measured = TypeVar("Measured")
Variant = Callable[[], float]
"""Runs once, including warm-up, and returns the rate: units of work per second of the measured part."""


@dataclass(frozen=True)
class Row:
    """One variant's rates, one per round, and its ratio to the base variant in the same round (above 1 is faster)."""

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

    @property
    def failed(self) -> bool:
        """Whether it could not be measured; its figures are NaN."""
        return math.isnan(self.rate)

    def as_json(self) -> dict[str, Any]:
        """All figures, rounded to what they are worth; null for what failed."""
        return {
            "name": self.name,
            "median": _rounded(self.rate),
            "rates": [_rounded(rate) for rate in self.rates],
            "ratio": _rounded(self.ratio),
            "ratio_spread": [_rounded(min(self.ratios)), _rounded(max(self.ratios))],
        }


@dataclass(frozen=True)
class Table:
    """Variants measured against each other; `base` has ratio 1, `unit` is the unit of the rates."""

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
    """The expected value of a figure: at least (or at most) `limit`."""

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
    return _table(title, unit, _measured(variants, rounds, math.nan))


def compare_with_cpu(
    title: str, variants: Mapping[str, Callable[[], tuple[float, float]]], rounds: int
) -> tuple[Table, Table]:
    """The same for variants that return images per second and per second of CPU time: a table of each."""
    both = _measured(variants, rounds, (math.nan, math.nan))
    by_clock, by_cpu = ({name: [pair[i] for pair in pairs] for name, pairs in both.items()} for i in (0, 1))
    return _table(title, "images/s", by_clock), _table(f"{title}, by CPU time", "images/cpu-s", by_cpu)


def _measured(
    variants: Mapping[str, Callable[[], Measured]], rounds: int, failed: Measured
) -> dict[str, list[Measured]]:
    """A variant that fails is told, and not tried again: the others shall not be lost with it."""
    names = list(variants)
    found: dict[str, list[Measured]] = {name: [] for name in names}
    broken = set()
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            try:
                found[name].append(failed if name in broken else variants[name]())
            except Exception:
                traceback.print_exc()
                print(f"not measured: {name}; what went wrong is printed above", file=sys.stderr, flush=True)
                broken.add(name)
                found[name] = [failed] * (number + 1)
    return found


def _table(title: str, unit: str, rates: Mapping[str, list[float]]) -> Table:
    base = next(iter(rates))
    rows = (
        Row(name, tuple(found), tuple(a / b for a, b in zip(found, rates[base], strict=True)))
        for name, found in rates.items()
    )
    return Table(title, unit, base, tuple(rows))


def rate_of(action: Callable[[], object], repeats: int, units: float, device: torch.device, warm_up: int = 1) -> float:
    """Units per second of an action that does `units` of work per call."""
    for _ in range(warm_up):
        action()
    started = now(device)
    for _ in range(repeats):
        action()
    return units * repeats / (now(device) - started)


def rate_of_batches(batches: Iterable[int], warm_up: int, counted: int, device: torch.device) -> float:
    """Units per second of a stream that yields batch sizes. The first `warm_up` batches only fill the queues.

    Afterwards the stream is at `warm_up` + `counted` batches.
    """
    return rates_of_batches(batches, warm_up, counted, device)[0]


def rates_of_batches(batches: Iterable[int], warm_up: int, counted: int, device: torch.device) -> tuple[float, float]:
    """The same, and units per second of CPU time of this process and its children, whose queues are as full at the end
    as at the start.
    """
    iterator = iter(batches)
    for _ in range(warm_up):
        next(iterator)
    used, started = cpu_seconds(), now(device)
    units = sum(next(iterator) for _ in range(counted))
    ended = now(device)
    return units / (ended - started), units / max(cpu_seconds() - used, 0.01)  # the system's resolution


def cpu_seconds() -> float:
    """CPU time, user and system, that this process and all processes it started have used so far.

    Running processes are read from /proc, in hundredths; finished ones are included in their parents.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    own = os.times()
    total = time.process_time() + own.children_user + own.children_system
    unseen = _children(os.getpid())
    while unseen:
        pid = unseen.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has exited meanwhile
            continue
        total += sum(map(int, fields[11:15])) / ticks
        unseen += _children(pid)
    return total


def _children(pid: int) -> list[int]:
    """Process ids of the children started by a process's threads."""
    with contextlib.suppress(OSError):
        files = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for file in files for child in file.read_text(encoding="utf-8").split()]
    return []


def now(device: torch.device) -> float:
    """Seconds, after the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _rounded(value: float) -> float | None:
    """None, as JSON knows no NaN, for what failed."""
    return None if math.isnan(value) else float(f"{value:.4g}")
