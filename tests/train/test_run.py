"""Whole runs on small data: what they leave behind, exact resume, pre-emption, refusals."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.helpers.runs import COUNTS, arguments, last_weights, options, records, same_weights
from tests.helpers.shard_sets import small_images
from train import __main__ as command
from train.execution import FINISHED, NON_FINITE, PREEMPTED
from train.loop.progress import Progress
from train.loop.signals import StopRequest
from train.loop.trainer import Trainer
from train.run import train

STEPS_PER_EPOCH = 4  # 27 images in batches of 8


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    assert train(options(data, run_dir)) == FINISHED
    return run_dir


def status(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "status.json").read_text())


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As if SIGTERM arrived during the step of this number, counted from 1."""
    seen = 0

    def step(self: Progress, *args: Any) -> None:
        nonlocal seen
        seen += 1

    monkeypatch.setattr(Progress, "step", step)
    monkeypatch.setattr(
        StopRequest,
        "signal",
        property(lambda self: signal.SIGTERM if seen >= steps - 1 else None, lambda self, value: None),
        raising=False,
    )


def test_a_run_leaves_numbers_tables_and_pictures(straight: Path) -> None:
    result = json.loads((straight / "result.json").read_text())
    assert result["test"]["last"]["samples"] == 12
    assert result["group_rule"] == "many n >= 101, medium 20 <= n <= 100, few n <= 19"
    assert result["executors"] == {"original": "resident", "foreground": "resident"}
    assert result["data"]["train"]["samples"] == sum(COUNTS)
    assert len(result["data"]["train"]["checksum"]) == 64
    assert list(result["startup_seconds"]) == ["data", "network", "loader", "first step"]
    assert result["cost"]["images_per_second"] > 0
    assert 0.1 < result["cost"]["peak_memory_gb"] < 100
    assert result["seconds"] >= json.loads((straight / "metrics.jsonl").read_text().splitlines()[-1])["seconds"] - 0.1
    assert torch.__version__.startswith(result["versions"]["torch"])
    assert status(straight)["outcome"] == "finished"
    rows = list(csv.DictReader((straight / "per_class.csv").open()))
    assert [int(row["train_samples"]) for row in rows] == list(COUNTS)
    for picture in ("curves", "accuracy_by_class_size", "confusion", "pasted"):
        with Image.open(straight / f"{picture}.png") as image:
            assert min(image.size) > 200
    saved = yaml.safe_load((straight / "options.yaml").read_text())
    assert saved["derived"]["steps_per_epoch"] == STEPS_PER_EPOCH
    assert saved["derived"]["milestones"] == [2, 3]  # 160 and 180 of 200, for 3 epochs
    assert "decode" not in saved["derived"]  # resident images
    assert saved["method"]["plain_first"] == 0


def test_a_run_says_how_dali_decodes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"data.executor": "dali", "data.decode_threads": 1, "epochs": 1}
    assert train(options(data, tmp_path / "run", **changes)) == FINISHED
    decode = yaml.safe_load((tmp_path / "run" / "options.yaml").read_text())["derived"]["decode"]
    assert (decode["threads"], decode["prefetch_batches"], decode["regions"]) == (1, 2, True)
    assert "  decode.prefetch_batches: 2\n" in capsys.readouterr().out


def test_metrics_have_every_step_and_every_epoch(straight: Path) -> None:
    lines = records(straight)
    assert [(r["epoch"], r["step"]) for r in lines if r["kind"] == "steps"] == [
        (epoch, step) for epoch in range(3) for step in range(STEPS_PER_EPOCH)
    ]
    assert [r["epoch"] for r in lines if r["kind"] == "epoch"] == [0, 1, 2]


@pytest.mark.parametrize("steps", [1, 6, STEPS_PER_EPOCH])
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    straight: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        assert train(options(data, run_dir)) == PREEMPTED
    stopped = status(run_dir)
    assert stopped["outcome"] == "preempted"
    done = stopped["epoch"] * STEPS_PER_EPOCH + stopped["step"]
    assert steps <= done <= steps + 2
    assert train(options(data, run_dir, resume="auto")) == FINISHED
    assert same_weights(last_weights(run_dir), last_weights(straight))
    assert records(run_dir) == records(straight)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(
    straight: Path, data: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text('{"kind": "steps", "epoch": 0, "step": 0, "loss": 2.0, "lr": 0.01}\n')
    assert train(options(data, run_dir, resume="auto")) == FINISHED
    assert records(run_dir) == records(straight)


def test_accumulation_and_checkpoint_cadence_do_not_change_the_plan(data: Path, straight: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    changes = {"accumulation": 2, "checkpoint_every_steps": 3, "keep_checkpoints": 3, "epochs": 2}
    assert train(options(data, run_dir, **changes)) == FINISHED
    names = sorted(path.name for path in (run_dir / "checkpoints").glob("epoch*"))
    assert names == ["epoch0001-step000000.pt", "epoch0001-step000003.pt", "epoch0002-step000000.pt"]
    # Batch norm sees half batches, so numbers differ; the first loss hardly does.
    assert records(run_dir)[0]["loss"] == pytest.approx(records(straight)[0]["loss"], rel=0.2)


def test_a_non_finite_loss_stops_the_run_and_leaves_the_checkpoint_before_it(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # The rate of the second epoch is far too high; the first epoch's checkpoint is fine.
    schedule = {"schedule.milestones": "[1]", "schedule.factors": "[1e30]", "schedule.for_epochs": 3}
    assert train(options(data, run_dir, **schedule, **{"schedule.warmup_epochs": 0})) == NON_FINITE
    found = status(run_dir)
    assert found["outcome"] == "non-finite"
    assert found["epoch"] == 1
    assert found["lr"] == pytest.approx(0.05 * 1e30)
    assert len(found["sample_ids"]) in (8, 3)
    assert all(torch.isfinite(value).all() for value in last_weights(run_dir).values())


def test_with_a_validation_set_the_best_epoch_is_chosen_on_it(data: Path, tmp_path: Path) -> None:
    small_images(tmp_path / "validation", (2, 2, 2, 2))
    run_dir = tmp_path / "run"
    assert train(options(data, run_dir, **{"data.validation": tmp_path / "validation"})) == FINISHED
    result = json.loads((run_dir / "result.json").read_text())
    assert result["test"]["best"]["selected_on"] == "validation"
    assert result["test"]["best"]["samples"] == 12
    epochs = [r for r in records(run_dir) if r["kind"] == "epoch"]
    assert all("test" not in r and r["validation"]["samples"] == 8 for r in epochs)
    accuracies = [r["validation"]["all"] for r in epochs]
    assert result["test"]["best"]["epoch"] == 1 + accuracies.index(max(accuracies))


def refusal(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int = 1
) -> str:
    """Standard error of a run that ends before it starts."""
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    assert command.main() == status
    return capsys.readouterr().err


def test_a_folder_with_a_run_is_not_written_over(
    straight: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = records(straight)
    assert "continue it with --resume auto" in refusal(arguments(data, straight), monkeypatch, capsys)
    assert records(straight) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.lr": 0.07}, "optimizer.lr: 0.05 in the checkpoint, 0.07 in this run"),
        ({"seed": 1}, "plan.seed: 0 in the checkpoint, 1 in this run"),
        ({"method.loss": "bs"}, "method.loss: 'ce' in the checkpoint, 'bs' in this run"),
        ({"model.width": 8}, "model.width: 4 in the checkpoint, 8 in this run"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(
    straight: Path,
    data: Path,
    changes: dict,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refusal(arguments(data, straight, resume="auto", **changes), monkeypatch, capsys)


def test_a_checkpoint_of_other_data_is_refused(
    straight: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_images(tmp_path / "train", (14, 7, 5, 2))
    message = refusal(
        arguments(data, straight, resume="auto", **{"data.train": tmp_path / "train"}), monkeypatch, capsys
    )
    assert "checksum" in message


def test_a_test_set_with_a_class_that_is_not_trained_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_images(tmp_path / "test", (2, 2, 2, 2, 2))
    changed = arguments(data, tmp_path / "run", **{"data.test": tmp_path / "test"})
    message = refusal(changed, monkeypatch, capsys)
    assert "classes differ: 1 of 5 classes of" in message
    assert "'class 4'" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "torch sees no GPU" in refusal(
        arguments(data, tmp_path / "run", device="cuda"), monkeypatch, capsys, status=2
    )


def test_fewer_samples_than_a_global_batch_is_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(arguments(data, tmp_path / "run", batch_size=64), monkeypatch, capsys)
    assert "27" in message
    assert "64" in message


def test_a_run_killed_before_the_evaluation_that_max_steps_brings_makes_up_for_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"max_steps": 2, "checkpoint_every_steps": 2, "resume": "auto"}
    assert train(options(data, tmp_path / "straight", **short)) == FINISHED
    with monkeypatch.context() as killed:
        killed.setattr(Trainer, "_end_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(options(data, tmp_path / "killed", **short))
    assert train(options(data, tmp_path / "killed", **short)) == FINISHED
    assert records(tmp_path / "killed") == records(tmp_path / "straight")
