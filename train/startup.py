"""Start-up time of a run until its first step, by part: wall and CPU seconds since the process started."""

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """A part of the start-up.

    Attributes:
        name: "python", "imports", "options", "data", "network", "loader" or "first step".
        seconds: wall-clock time.
        cpu_seconds: of all threads of this process, user and system.
    """

    name: str
    seconds: float
    cpu_seconds: float


class StartClock:
    """Splits a run's start-up into parts, each starting at the end of the one before.

    Args:
        from_process_start: count from the start of the process, for commands; otherwise from now, for library calls.
    """

    def __init__(self, from_process_start: bool = False):
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        if from_process_start:
            self._wall, self._cpu = self._wall - _process_age(), 0.0
        self.parts: list[Part] = []

    def end_of(self, name: str) -> None:
        """A part ends now."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.parts.append(Part(name, wall - self._wall, cpu - self._cpu))
        self._wall, self._cpu = wall, cpu

    def line(self) -> str:
        """A line for people, which names the larger parts."""
        named = ", ".join(f"{part.name} {part.seconds:.1f}" for part in self.parts if part.seconds >= 0.05)
        seconds, cpu = (sum(values) for values in zip(*((p.seconds, p.cpu_seconds) for p in self.parts), strict=True))
        return f"first step after {seconds:.1f} s, {cpu:.1f} s of CPU time ({named})"

    def record(self) -> dict[str, dict[str, float]]:
        """For result.json: part → {"wall", "cpu"}, seconds."""
        return {p.name: {"wall": round(p.seconds, 3), "cpu": round(p.cpu_seconds, 3)} for p in self.parts}


def _process_age() -> float:
    """Seconds since this process started, to a hundredth; 0 if the system does not report it (without /proc)."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
