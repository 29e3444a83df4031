"""Training over several nodes: two network namespaces as two hosts, elastic restarts, and the lines for Slurm."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import psutil
import pytest

from pipeline.plan import Position
from tests.helpers.hosts import SUBNET, interface, on_host, two_hosts
from tests.helpers.processes import RANKS_END_WITHIN_SECONDS, sample_ids, start, wait_for_steps
from tests.helpers.runs import ROOT, arguments, last_weights, options, same_weights
from tests.helpers.short_runs import make_run
from train.run import FINISHED

pytestmark = pytest.mark.slow  # each starts four to eight interpreters that load torch, 5 s of a core each

RECORDED = "tests.helpers.recorded_training"


def launch_on(host: str, machine: int, command: list[str], ids: Path, log: Path) -> subprocess.Popen[bytes]:
    """Two of four ranks by `accelerate launch`, as the README says it for several nodes."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml"]
    nodes = ["--num_machines", "2", "--machine_rank", str(machine), "--main_process_ip", f"{SUBNET}.1"]
    nodes += ["--main_process_port", "29500", "--num_processes", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface(host)}
    with log.open("wb") as output:
        return subprocess.Popen(
            on_host(host, [*launcher, *nodes, "-m", RECORDED, str(ids), *command]),
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """A host that loses its power: the launcher and its ranks."""
    for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        victim.kill()
    process.wait()


def test_two_hosts_train_what_one_host_trains(data: Path, tmp_path: Path) -> None:
    local = start(arguments(data, tmp_path / "local"), tmp_path / "local log", ranks=4, ids=tmp_path / "local ids")
    assert local.wait() == [FINISHED] * 4, local.output()
    with two_hosts() as hosts:
        command = arguments(data, tmp_path / "two")
        logs = [tmp_path / f"log {host}" for host in hosts]
        launched = [launch_on(host, n, command, tmp_path / "ids", logs[n]) for n, host in enumerate(hosts)]
        assert [each.wait(timeout=300) for each in launched] == [0, 0], "".join(log.read_text() for log in logs)
    assert sample_ids(tmp_path / "ids") == sample_ids(tmp_path / "local ids")
    assert len(sample_ids(tmp_path / "ids")) == 12
    assert same_weights(last_weights(tmp_path / "two"), last_weights(tmp_path / "local"))


def test_a_lost_host_ends_the_other_and_the_run_goes_on_with_one(data: Path, tmp_path: Path) -> None:
    changes = {"checkpoint_every_steps": 1, "resume": "auto", "keep_checkpoints": 3}
    command = arguments(data, tmp_path / "run", epochs=8, **changes)
    with two_hosts() as hosts:
        logs = [tmp_path / f"log {host}" for host in hosts]
        launched = [launch_on(host, n, command, tmp_path / "ids", logs[n]) for n, host in enumerate(hosts)]
        wait_for_steps(tmp_path / "run", 3, seconds=300)
        kill_all(launched[1])
        lost = time.monotonic()
        assert launched[0].wait(timeout=RANKS_END_WITHIN_SECONDS) != 0
        assert time.monotonic() - lost < RANKS_END_WITHIN_SECONDS
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["outcome"] == "failed"
    assert "onnection" in status["error"]
    rest = start(command, tmp_path / "log", ranks=2, ids=tmp_path / "rest")
    assert rest.wait() == [FINISHED] * 2, rest.output()
    taken = sample_ids(tmp_path / "rest")
    first = Position(*taken[0][:2])
    assert Position(0, 0) < first < Position(8, 0)
    plan = make_run(options(data, tmp_path / "planned", epochs=8)).plan
    assert taken == [
        (at.epoch, at.step, {name: each.sample_ids.tolist() for name, each in plan.step(*astuple(at)).streams.items()})
        for at in plan.positions(first, Position(8, 0))
    ]


def test_torchrun_restarts_a_run_that_lost_a_rank_and_it_continues(data: Path, tmp_path: Path) -> None:
    changes = {"checkpoint_every_steps": 1, "resume": "auto"}
    command = arguments(data, tmp_path / "run", epochs=8, **changes)
    elastic = ["--standalone", "--nproc_per_node", "2", "--max_restarts", "2", "-m", RECORDED, str(tmp_path / "ids")]
    with (tmp_path / "log").open("wb") as output:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *elastic, *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    wait_for_steps(tmp_path / "run", 3, seconds=300)
    pid = json.loads((tmp_path / "run" / "status.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    assert launcher.wait(timeout=300) == 0, (tmp_path / "log").read_text()[-3000:]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["outcome"] == "finished"
    straight = start(arguments(data, tmp_path / "straight", epochs=8), tmp_path / "log 2", ranks=2)
    assert straight.wait() == [FINISHED] * 2, straight.output()
    assert same_weights(last_weights(tmp_path / "run"), last_weights(tmp_path / "straight"))
    taken = [json.loads(line)[:2] for line in (tmp_path / "ids").read_text().splitlines()]
    assert {tuple(at) for at in taken} == {(epoch, step) for epoch in range(8) for step in range(4)}
