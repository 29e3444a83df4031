"""Trainings as processes of their own, which start within a second: they are forked from one that has imported it all.

What runs in them is `python -m train`, ranks included; only the interpreter's start is shared.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from train.loop.trainer import Trainer

# A rank that dies takes the others with it within this time (gloo notices a closed connection at once).
RANKS_END_WITHIN_SECONDS = 60.0
_RUN_SECONDS = 300.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.helpers.processes", "train.methods.method"])


@dataclass(frozen=True)
class Training:
    """A running training.

    ranks: its processes, by rank; log: what they all print.
    """

    ranks: list[BaseProcess]
    log: Path

    @property
    def alive(self) -> bool:
        """Whether any rank still runs."""
        return any(rank.is_alive() for rank in self.ranks)

    def signal(self, number: int) -> None:
        """Send every rank a signal."""
        for rank in self.ranks:
            if rank.is_alive() and rank.pid is not None:
                os.kill(rank.pid, number)

    def wait(self, seconds: float = _RUN_SECONDS) -> list[int | None]:
        """The exit codes, negative for a signal; None for a rank that had to be killed because time was up."""
        deadline = time.monotonic() + seconds
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        codes = [rank.exitcode for rank in self.ranks]
        self.signal(signal.SIGKILL)
        for rank in self.ranks:
            rank.join()
        return codes

    def output(self) -> str:
        """Everything printed so far."""
        return self.log.read_text() if self.log.exists() else ""


def start(
    arguments: Sequence[str],
    log: Path,
    ranks: int = 1,
    ids: Path | None = None,
    variables: Mapping[str, str] | None = None,
    module: str = "train",
    folder: Path | None = None,
    **hooks: Any,
) -> Training:
    """Start a training with this command line on so many ranks.

    ids: a file that gets one line per step and rank with the sample ids. hooks: see `record_sample_ids`.
    variables: added to the environment, which is otherwise that of the first start. module: what is run. folder: where.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    started = []
    for rank in range(ranks):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        environment = {**shared, **{name: str(value) for name, value in numbers.items()}} if ranks > 1 else {}
        environment |= variables or {}
        parts = (module, list(arguments), log, environment, folder or Path.cwd(), ids, hooks)
        process = _context.Process(target=_run, args=parts)
        process.start()
        started.append(process)
    return Training(started, log)


def _run(
    module: str,
    arguments: list[str],
    log: Path,
    environment: dict[str, str],
    folder: Path,
    ids: Path | None,
    hooks: Any,
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    if ids is not None:
        record_sample_ids(ids, **hooks)
    runpy.run_module(module, run_name="__main__")


def record_sample_ids(path: Path, stop_after: int | None = None) -> None:
    """Have each training step append (epoch, step, rank, ids by stream); after `stop_after` of them comes a SIGTERM."""
    train_step, steps = Trainer.train_step, 0

    def recorded(self: Trainer, loaded: Any) -> None:
        nonlocal steps
        train_step(self, loaded)
        streams: dict[str, list[int]] = {}
        for micro in loaded.micro_batches:
            for name, batch in micro.batches.items():
                streams.setdefault(name, []).extend(batch.sample_ids[batch.weights.numpy() > 0].tolist())
        record = [loaded.whole.epoch, loaded.whole.step, self.parts.accelerator.process_index, streams]
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        steps += 1
        if steps == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer.train_step = recorded  # type: ignore[method-assign]


def sample_ids(path: Path) -> list[tuple[int, int, dict[str, list[int]]]]:
    """(epoch, step, ids by stream of the whole global batch), in the order of training; steps run twice are twice."""
    found: list[tuple[int, int, dict[str, list[int]]]] = []
    records = sorted(enumerate(map(json.loads, path.read_text().splitlines())), key=lambda r: (r[1][:3], r[0]))
    for _, (epoch, step, rank, streams) in records:
        if rank == 0:
            found.append((epoch, step, streams))
        else:
            for name, ids in streams.items():
                found[-1][2][name] += ids
    return found


def wait_for_steps(run_dir: Path, steps: int, seconds: float = 120) -> None:
    """Until metrics.jsonl has so many lines."""
    path, deadline = run_dir / "metrics.jsonl", time.monotonic() + seconds
    while not path.exists() or len(path.read_bytes().splitlines()) < steps:
        assert time.monotonic() < deadline, "the run does not get going"
        time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
