"""Comparing variants on a machine whose speed drifts: interleaved rounds, ratios within a round, median and spread."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

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
    names = list(variants)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            rates[name].append(variants[name]())
    base = names[0]
    rows = (
        Row(name, tuple(rates[name]), tuple(a / b for a, b in zip(rates[name], rates[base], strict=True)))
        for name in names
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
    iterator = iter(batches)
    for _ in range(warm_up):
        next(iterator)
    started = now(device)
    units = sum(next(iterator) for _ in range(counted))
    return units / (now(device) - started)


def now(device: torch.device) -> float:
    """Seconds, after the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
