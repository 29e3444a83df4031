"""A build that is really killed, again and again, ends in the same bytes and redoes no finished shard."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from shards.reader import ShardSet
from tests.shards.build_in_process import build
from tests.shards.making import folder_bytes, folder_source, picture

NUM_IMAGES = 240
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(("victim", "seed"), [("parent", 0), ("worker", 1)])
def test_killed_builds_continue_to_the_same_bytes(tmp_path: Path, victim: str, seed: int) -> None:
    rng = random.Random(seed)
    root, folder = tmp_path / "original", tmp_path / "set"
    folder_source(root, {f"{i % 3}/{i:03d}.jpg": picture(i, 200, 150) for i in range(NUM_IMAGES)})
    build(root, tmp_path / "straight", workers=1)
    kills = 0
    while True:
        finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.part.json")}
        tars = {path: (folder / path.name.replace(".part.json", ".tar")).stat().st_mtime_ns for path in finished}
        killed = run_and_kill(root, folder, victim, rng, shards_before_kill=len(finished) + rng.randrange(4, 9))
        for path, mtime in tars.items():
            assert (folder / path.name.replace(".part.json", ".tar")).stat().st_mtime_ns == mtime
        if not killed:
            break
        kills += 1
    assert kills >= 2
    assert folder_bytes(folder) == folder_bytes(tmp_path / "straight")
    assert len(ShardSet.open(folder)) == NUM_IMAGES


def run_and_kill(root: Path, folder: Path, victim: str, rng: random.Random, shards_before_kill: int) -> bool:
    """Run the build in a process of its own and kill it some moments after so many shards are done. Whether it was."""
    command = [sys.executable, "-m", "tests.shards.build_in_process", str(root), str(folder)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
    while process.poll() is None and len(list(folder.glob("*.part.json"))) < shards_before_kill:
        time.sleep(0.002)
    time.sleep(rng.random() * 0.02)
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    workers = [child for child in family if "multiprocessing.spawn" in " ".join(child.cmdline())]
    for target in workers[:1] if victim == "worker" else [process]:
        with suppress(psutil.NoSuchProcess):
            target.kill()
    message = process.communicate(timeout=60)[1].decode()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, "a worker outlived its killed parent"
    if process.returncode == 0:
        return False
    assert victim == "parent" or "a worker process was killed" in message
    return True
