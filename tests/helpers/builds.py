"""Rounds of killed builds: a worker or the parent is killed, the same command continues, and every byte is compared."""

import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from shards.reader import ShardSet
from tests.helpers.build_in_process import build
from tests.helpers.making import folder_bytes, folder_source, picture
from tests.helpers.rounds import Round

_NUM_IMAGES = 240
_ENDS_WITHIN_SECONDS = 60
_REPOSITORY = Path(__file__).parents[2]


@dataclass
class Builds:
    """Builds with two workers in a folder of their own, of which one process is killed again and again.

    folder: an empty one.
    """

    victim: Literal["parent", "worker"]
    folder: Path

    @property
    def name(self) -> str:
        """For the figures."""
        return f"build, {self.victim} killed"

    def round(self, number: int, rng: random.Random) -> Round:
        """Kill a build whenever it has finished some more shards, until there is nothing left to do; compare."""
        originals, straight, folder = self.folder / "originals", self.folder / "straight", self.folder / f"{number}"
        if not originals.exists():
            folder_source(originals, {f"{i % 3}/{i:03d}.jpg": picture(i, 200, 150) for i in range(_NUM_IMAGES)})
            build(originals, straight, workers=1)
        kills, differences, killed = 0, [], True
        while killed:
            done = [part.with_name(part.name.replace(".part.json", ".tar")) for part in folder.glob("*.part.json")]
            times = {tar: tar.stat().st_mtime_ns for tar in done}
            killed, faults = self._run_and_kill(originals, folder, rng, len(done) + rng.randrange(4, 9))
            kills += killed
            differences += faults
            redone = [tar.name for tar, time_ns in times.items() if tar.stat().st_mtime_ns != time_ns]
            differences += [f"{name} was finished and written again" for name in redone]
        expected, found = folder_bytes(straight), folder_bytes(folder)
        changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if changed or len(ShardSet.open(folder)) != _NUM_IMAGES:
            differences.append(f"files differ: {', '.join(changed)}")
        return Round(kills, differences)

    def _run_and_kill(
        self, originals: Path, folder: Path, rng: random.Random, shards_before_kill: int
    ) -> tuple[bool, list[str]]:
        """Kill a build some moments after so many shards are done. Whether it came to that, and what went wrong."""
        command = [sys.executable, "-m", "tests.helpers.build_in_process", str(originals), str(folder)]
        process = subprocess.Popen(command, cwd=_REPOSITORY, stderr=subprocess.PIPE)
        while process.poll() is None and len(list(folder.glob("*.part.json"))) < shards_before_kill:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        workers = [child for child in family if "multiprocessing.spawn" in " ".join(child.cmdline())]
        for target in workers[:1] if self.victim == "worker" else [process]:
            with suppress(psutil.NoSuchProcess):
                target.kill()
        faults = []
        try:
            message = process.communicate(timeout=_ENDS_WITHIN_SECONDS)[1].decode()
        except subprocess.TimeoutExpired:
            faults.append(f"the build hung for {_ENDS_WITHIN_SECONDS} s after the kill")
            for target in (process, *family):
                with suppress(psutil.NoSuchProcess):
                    target.kill()
            message = process.communicate()[1].decode()
        if psutil.wait_procs(family, timeout=_ENDS_WITHIN_SECONDS)[1]:
            faults.append("a worker outlived its killed parent")
        if process.returncode != 0 and self.victim == "worker" and "a worker process was killed" not in message:
            faults.append(f"the error does not say that a worker was killed: {message[-500:]}")
        return process.returncode != 0, faults
