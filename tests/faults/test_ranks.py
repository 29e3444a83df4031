"""Other numbers of ranks see the same samples; a rank that dies, and signals, end all ranks in an orderly way."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.processes import RANKS_END_WITHIN_SECONDS, sample_ids, start, wait_for_steps
from tests.helpers.runs import arguments, records
from train.execution import FAILED, FINISHED, PREEMPTED

STEPS = [(epoch, step) for epoch in range(3) for step in range(4)]


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run on one rank, with `ids`."""
    folder = tmp_path_factory.mktemp("straight")
    training = start(arguments(data, folder / "run"), folder / "log", ids=folder / "ids")
    assert training.wait() == [FINISHED], training.output()
    return folder


@pytest.mark.parametrize(("first", "second"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_half_a_run_on_another_number_of_ranks_takes_the_same_samples(
    straight: Path, data: Path, tmp_path: Path, first: int, second: int
) -> None:
    command = arguments(data, tmp_path / "run", resume="auto")
    stopped = start(command, tmp_path / "log", first, ids=tmp_path / "first", stop_after=6)
    assert stopped.wait() == [PREEMPTED] * first, stopped.output()
    resumed = start(command, tmp_path / "log", second, ids=tmp_path / "second")
    assert resumed.wait() == [FINISHED] * second, resumed.output()
    before, after = sample_ids(tmp_path / "first"), sample_ids(tmp_path / "second")
    assert 6 <= len(before) <= 8
    assert [(epoch, step) for epoch, step, _ in before + after] == STEPS
    assert before + after == sample_ids(straight / "ids")
    losses = [
        [r["loss"] for r in records(folder / "run") if r["kind"] == "steps" and r["step"] < 3]
        for folder in (tmp_path, straight)
    ]
    # Half a batch has other statistics, so batch norm gives other numbers; of the 3 samples that end an epoch, any.
    assert losses[0] == pytest.approx(losses[1], rel=0.5)


def test_a_dead_rank_ends_the_others_with_the_cause(data: Path, tmp_path: Path) -> None:
    training = start(arguments(data, tmp_path / "run", epochs=2000), tmp_path / "log", ranks=2)
    wait_for_steps(tmp_path / "run", 2)
    training.ranks[1].kill()
    killed = time.monotonic()
    assert training.wait(RANKS_END_WITHIN_SECONDS) == [FAILED, -signal.SIGKILL]
    assert time.monotonic() - killed < RANKS_END_WITHIN_SECONDS
    assert "onnection" in training.output().splitlines()[-1]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["outcome"] == "failed"
    assert "onnection" in status["error"]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_before_the_ranks_have_met_ends_the_other_too(data: Path, tmp_path: Path, dead: int) -> None:
    command = arguments(data, tmp_path / "run", epochs=2000, meet_within_seconds=4)
    training = start(command, tmp_path / "log", ranks=2)
    training.ranks[dead].kill()
    killed = time.monotonic()
    codes = training.wait(RANKS_END_WITHIN_SECONDS)
    assert (codes[dead], codes[1 - dead]) == (-signal.SIGKILL, FAILED), training.output()
    assert time.monotonic() - killed < 45  # 4 s, and the start of the other on a busy machine
    assert "could not connect to all 2 processes" in training.output().splitlines()[-1]
    assert "within 4 s" in training.output().splitlines()[-1]


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGUSR1, 2)])
def test_a_signal_ends_all_ranks_with_a_checkpoint(data: Path, tmp_path: Path, number: int, ranks: int) -> None:
    training = start(arguments(data, tmp_path / "run", epochs=2000), tmp_path / "log", ranks)
    wait_for_steps(tmp_path / "run", 2)
    training.signal(number)
    assert training.wait() == [PREEMPTED] * ranks, training.output()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["signal"]) == ("preempted", number)
    checkpoint = f"epoch{status['epoch']:04d}-step{status['step']:06d}.pt"
    assert (tmp_path / "run" / "checkpoints" / checkpoint).exists()


def test_two_runs_in_one_folder_exclude_each_other(data: Path, tmp_path: Path) -> None:
    command = arguments(data, tmp_path / "run", epochs=2000, resume="auto")
    first = start(command, tmp_path / "log")
    wait_for_steps(tmp_path / "run", 2)
    second = start(command, tmp_path / "log of the second")
    assert second.wait() == [FAILED]
    assert "another process is training in this folder" in second.output().splitlines()[-1]
    first.signal(signal.SIGTERM)
    assert first.wait() == [PREEMPTED], first.output()
