"""What a signal to `accelerate launch` itself does; the same lines stand in docs/reliability.md."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.processes import wait_for_steps
from tests.helpers.runs import ROOT, arguments

pytestmark = pytest.mark.slow  # four interpreters load torch, 5 s of a core each


OURS = ("--config_file", "accelerate_config.yaml", "--main_process_port", "0")


def launch(
    command: list[str], processes: int, log: Path, options: Sequence[str] = OURS, **environment: str
) -> subprocess.Popen[bytes]:
    module = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher = [*module, *options, "--num_processes", str(processes)]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*launcher, "-m", "train", *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def status(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "status.json").read_text())


@pytest.mark.parametrize(
    ("processes", "number", "environment"),
    [
        (1, signal.SIGTERM, {}),
        (2, signal.SIGTERM, {}),
        (2, signal.SIGUSR1, {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}),
    ],
    ids=["SIGTERM, one process", "SIGTERM", "SIGUSR1, named to the launcher"],
)
def test_the_launcher_of_our_configuration_passes_a_signal_on(
    data: Path, tmp_path: Path, processes: int, number: int, environment: dict[str, str]
) -> None:
    run_dir = tmp_path / "run"
    launcher = launch(arguments(data, run_dir, epochs=100_000), processes, tmp_path / "log", **environment)
    wait_for_steps(run_dir, 2, seconds=300)
    workers = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(number)
    assert launcher.wait(timeout=60) != 0
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert status(run_dir)["outcome"] == "preempted", (tmp_path / "log").read_text()[-3000:]
    position = status(run_dir)
    name = f"epoch{position['epoch']:04d}-step{position['step']:06d}.pt"
    assert (run_dir / "checkpoints" / name).exists()


def test_the_launcher_of_one_process_without_a_configuration_leaves_it_alone(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    launcher = launch(arguments(data, run_dir, epochs=100_000), 1, tmp_path / "log", options=())
    wait_for_steps(run_dir, 2, seconds=300)
    [worker] = psutil.Process(launcher.pid).children()
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == -signal.SIGTERM
    assert worker.is_running()
    assert worker.pid == status(run_dir)["pid"]
    worker.send_signal(signal.SIGTERM)
    psutil.wait_procs([worker], timeout=60)
    assert status(run_dir)["outcome"] == "preempted"


def test_a_killed_worker_ends_the_launcher_with_the_cause(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    launcher = launch(arguments(data, run_dir, epochs=100_000), 2, tmp_path / "log")
    wait_for_steps(run_dir, 2, seconds=300)
    workers = psutil.Process(launcher.pid).children(recursive=True)
    next(w for w in workers if w.pid == status(run_dir)["pid"]).kill()
    assert launcher.wait(timeout=60) != 0
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert "SIGKILL" in "".join((tmp_path / "log").read_text().splitlines(keepends=True)[-30:])
