"""Shards that were damaged after they were built: found at open or while training, named, replaced, and limited."""

import json
import os
import signal
from pathlib import Path

import pytest

from shards.reader import ShardSet
from tests.helpers.processes import start, wait_for_steps
from tests.helpers.runs import arguments, make_data, options
from tests.helpers.shard_sets import flip_a_byte
from train import __main__ as command
from train.execution import FAILED, FINISHED
from train.run import train

EXECUTORS = ["resident", "dali"]


def flipped(folder: Path, samples: list[int]) -> Path:
    """The data of `make_data`, with a byte changed in the middle of these training samples."""
    make_data(folder)
    for sample in samples:
        flip_a_byte(ShardSet.open(folder / "train"), sample)
    return folder


@pytest.mark.parametrize("executor", EXECUTORS)
def test_flipped_bytes_are_replaced_counted_and_reported(
    tmp_path: Path, executor: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = flipped(tmp_path / "data", [3, 20])
    run_dir = tmp_path / "run"
    assert train(options(damaged, run_dir, **{"data.executor": executor, "data.bad_sample_budget": 2})) == FINISHED
    replaced = json.loads((run_dir / "result.json").read_text())["replaced_samples"]
    assert list(replaced) == ["train"]
    assert sorted(replaced["train"]) == ["20", "3"]
    assert "original/3.jpg" in replaced["train"]["3"]
    assert "000000.tar" in replaced["train"]["3"]
    assert "bad sample 2 of at most 2, replaced by another one of its class" in caplog.text


@pytest.mark.parametrize("executor", EXECUTORS)
def test_past_the_budget_the_run_stops_with_the_reason(tmp_path: Path, executor: str) -> None:
    damaged = flipped(tmp_path / "data", [3, 20])
    run_dir = tmp_path / "run"
    with pytest.raises(RuntimeError, match=r"2 unusable samples, 1 are tolerated.*verify_shards"):
        train(options(damaged, run_dir, **{"data.executor": executor, "data.bad_sample_budget": 1}))
    assert not (run_dir / "result.json").exists()


def test_a_damaged_test_image_stops_the_run_instead_of_changing_the_number(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    flip_a_byte(ShardSet.open(tmp_path / "data" / "test"), 0)
    with pytest.raises(RuntimeError, match=r"1 unusable samples, 0 are tolerated"):
        train(options(tmp_path / "data", tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["outcome"] == "failed"


def test_a_truncated_tar_is_refused_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = make_data(tmp_path / "data") / "train" / "000001.tar"
    whole = tar.stat().st_size
    os.truncate(tar, whole // 2)
    monkeypatch.setattr("sys.argv", ["train", *arguments(tmp_path / "data", tmp_path / "run")])
    assert command.main() == FAILED
    message = capsys.readouterr().err
    assert f"000001.tar: {whole // 2} bytes found, {whole} written" in message
    assert not (tmp_path / "run").exists()


def test_a_tar_cut_while_it_is_read_ends_the_run_with_a_word_and_is_named_at_the_next_start(tmp_path: Path) -> None:
    """The kernel ends a process that reads a mapped file beyond its new end (SIGBUS); nothing can be caught then."""
    arguments_of_run = arguments(make_data(tmp_path / "data"), tmp_path / "run", epochs=2000, resume="auto")
    arguments_of_run += ["--data.executor", "dali"]
    training = start(arguments_of_run, tmp_path / "log")
    wait_for_steps(tmp_path / "run", 2)
    for tar in (tmp_path / "data" / "train").glob("*.tar"):
        os.truncate(tar, 0)
    assert training.wait() == [-signal.SIGBUS]
    assert "Fatal Python error: Bus error" in training.output()
    again = start(arguments_of_run, tmp_path / "log of the second")
    assert again.wait() == [FAILED]
    assert "000000.tar: 0 bytes found" in again.output()
