"""A benchmark's results: tables for people, and a JSON file with data, settings, machine and versions."""

import math
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tools.benchmarks.measuring import Table, Target
from train.provenance import commit, versions
from train.run_folder import write_json


@dataclass
class Report:
    """The result of one benchmark.

    Args:
        subject: "build", "feed", …; the name of the JSON file.
        data: description of the images that were used.
        settings: batch size, rounds, workers, models: what one would have to repeat.
        notes: figures that belong to no table.
        saved_to: folder and command of the file, which is written again with every table; None waits for `write`.
    """

    subject: str
    data: dict[str, Any]
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    saved_to: tuple[Path, str] | None = None

    def add(self, *tables: Table) -> None:
        """More tables; what is known by now is in the file, whatever happens next."""
        self.tables += tables
        if self.saved_to is not None:
            self.write(*self.saved_to)

    @property
    def failed(self) -> list[str]:
        """Variants that could not be measured."""
        return [row.name for table in self.tables for row in table.rows if row.failed]

    def print(self) -> None:
        """Print tables, notes and targets."""
        print(f"\n== {self.subject}: {', '.join(f'{k} {v}' for k, v in (self.data | self.settings).items())}")
        for table in self.tables:
            print("\n".join(table.lines()))
        for name, value in self.notes.items():
            print(f"  {name}: {value}")
        for target in self.targets:
            relation = "at most" if target.at_most else "at least"
            verdict = "met" if target.met else "not measured" if math.isnan(target.value) else "MISSED"
            print(f"  {verdict}: {target.measure} {target.value:.3g} ({relation} {target.limit:g})")
        sys.stdout.flush()

    def write(self, folder: Path, command: str) -> Path:
        """Write `folder`/SUBJECT.json."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.subject}.json"
        content = {
            "benchmark": self.subject,
            "command": command,
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "data": self.data,
            "settings": self.settings,
            "tables": [table.as_json() for table in self.tables],
            "notes": self.notes,
            "targets": [target.as_json() for target in self.targets],
        }
        write_json(path, content)
        return path


def machine() -> dict[str, Any]:
    """Processor, cores of this process, GPU, and the load at the end: other work distorts even ratios."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average_5_minutes": round(os.getloadavg()[1], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
