"""The script for Slurm, run under stubs of srun and scontrol that start its real processes on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers.processes import start, wait_for_steps
from tests.helpers.runs import ROOT, arguments, last_weights, same_weights
from train.execution import FINISHED, PREEMPTED

SCRIPT = ROOT / "scripts" / "train.slurm"
# After their manuals: one process per task with its numbers and the highest of their exit codes; one line per
# host.
SRUN = """#!/bin/bash
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks[task]=$!
done
highest=0
for task in "${tasks[@]}"; do
    wait "$task"; code=$?
    ((code > highest)) && highest=$code
done
exit $highest
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo 127.0.0.1; else echo "$@" >> "$(dirname "$0")/calls"; fi
"""


def test_the_script_is_bash_and_asks_for_one_task_per_gpu_and_an_early_signal() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    head, *_ = SCRIPT.read_text().split("\nset ")  # Slurm reads no #SBATCH after the first command
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE))
    assert SCRIPT.read_text().count("#SBATCH") == len(asked)
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"].startswith("USR1@")
    assert "requeue" in asked


@pytest.mark.slow  # five interpreters load torch
def test_a_job_is_pre_empted_requeued_and_finished(data: Path, tmp_path: Path) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(text)
        stub.chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]"}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    environment = {**os.environ, **job, **tasks, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), *arguments(data, tmp_path / "run", epochs=12, resume="auto")]
    first = subprocess.Popen(command, cwd=ROOT, env=environment)
    wait_for_steps(tmp_path / "run", 2, seconds=300)
    for child in psutil.Process(first.pid).children(recursive=True):
        if "train" in child.cmdline() and child.name().startswith("python"):
            child.send_signal(signal.SIGUSR1)
    assert first.wait(timeout=120) == PREEMPTED
    assert (tmp_path / "bin" / "calls").read_text() == f"requeue {os.getpid()}\n"
    assert subprocess.run(command, cwd=ROOT, env=environment, timeout=300, check=False).returncode == FINISHED
    assert json.loads((tmp_path / "run" / "status.json").read_text())["outcome"] == "finished"
    straight = start(arguments(data, tmp_path / "straight", epochs=12), tmp_path / "log", ranks=2)
    assert straight.wait() == [0, 0], straight.output()
    assert same_weights(last_weights(tmp_path / "run"), last_weights(tmp_path / "straight"))
