"""A full disk: a clear error, nothing half-written in the way, and with room again the same command completes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.plan import Position
from tests.helpers.runs import last_weights, options, records, same_weights
from train.checkpoints.files import CheckpointFolder, save
from train.run import FINISHED, train
from train.run_folder import MetricsFile


def fill_disk_under(path: Path) -> None:
    """Every write to `path` fails as on a full disk, by the kernel's own doing."""
    path.symlink_to("/dev/full")


@pytest.mark.parametrize("values", [10, 10_000_000], ids=["found at the end", "found midway"])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it_and_no_rest(tmp_path: Path, values: int) -> None:
    checkpoints = CheckpointFolder(tmp_path / "checkpoints", keep=1)
    checkpoints.prepare()
    before = checkpoints.save(Position(0, 1), {"step": 1})
    fill_disk_under(checkpoints.folder / "epoch0000-step000002.pt.partial")
    content = {"model": {"weight": torch.zeros(values)}, "state": [torch.zeros(1), "text"]}
    with pytest.raises(RuntimeError, match=rf"too full: about {4 * values + 4:,} bytes needed, [\d,]+ free; make room"):
        checkpoints.save(Position(0, 2), content)
    assert list(checkpoints.folder.iterdir()) == [before]
    checkpoints.save(Position(0, 2), content)


def test_other_errors_of_the_disk_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "nowhere" / "x.pt", {})


def test_a_run_that_fills_the_disk_continues_once_there_is_room(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(options(data, tmp_path / "straight")) == FINISHED
    run_dir, save_checkpoint = tmp_path / "run", CheckpointFolder.save

    def filling(self: CheckpointFolder, position: Position, content: Any) -> Path:
        if position.epoch == 2:
            fill_disk_under(self.folder / "epoch0002-step000000.pt.partial")
        return save_checkpoint(self, position, content)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", filling)
        with pytest.raises(RuntimeError, match="disk is too full"):
            train(options(data, run_dir))
    status = json.loads((run_dir / "status.json").read_text())
    assert status["outcome"] == "failed"
    assert "disk is too full" in status["error"]
    assert train(options(data, run_dir, resume="auto")) == FINISHED
    assert same_weights(last_weights(run_dir), last_weights(tmp_path / "straight"))
    assert records(run_dir) == records(tmp_path / "straight")


def test_the_cause_is_shown_even_if_the_status_cannot_be_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"

    def full(self: MetricsFile, record: dict[str, Any]) -> None:
        fill_disk_under(run_dir / "status.json.partial")
        with Path("/dev/full").open("w") as file:
            file.write("no room")

    monkeypatch.setattr(MetricsFile, "append", full)
    with pytest.raises(OSError, match="No space left on device"):
        train(options(data, run_dir))
    assert "status.json could not be written" in caplog.text
    assert json.loads((run_dir / "status.json").read_text())["outcome"] == "running"
