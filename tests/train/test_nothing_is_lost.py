"""Results come first: what fails late is a warning. Runs without a test set, with patience, and shorter than mixing."""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from tests.helpers.runs import options, records
from tests.helpers.shard_sets import small_images
from train.checkpoints.files import load
from train.evaluation import pictures
from train.loop.trainer import Trainer
from train.run import FINISHED, train


def outcome(run_dir: Path) -> tuple[str, dict[str, Any]]:
    status = json.loads((run_dir / "status.json").read_text())
    return status["outcome"], json.loads((run_dir / "result.json").read_text())


def test_pictures_tables_and_trackers_that_fail_are_warnings(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr(pictures, "curves", fail)
    monkeypatch.setattr(Accelerator, "log", fail)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "per_class.csv").mkdir()  # in the place of a file
    assert train(options(data, tmp_path / "run", epochs=1)) == FINISHED
    said, result = outcome(tmp_path / "run")
    assert (said, result["test"]["last"]["epoch"]) == ("finished", 1)
    assert "curves.png could not be written; the numbers are saved: RuntimeError: no such font" in caplog.text
    assert "per_class.csv could not be written" in caplog.text
    assert caplog.text.count("a tracker failed, the run continues without it") == 1
    assert (tmp_path / "run" / "confusion.png").exists()


def test_a_run_without_a_test_set_reports_its_validation_set(data: Path, tmp_path: Path) -> None:
    changes = {"data.test": None, "data.validation": data / "test", "epochs": 1}
    assert train(options(data, tmp_path / "run", **changes)) == FINISHED
    said, result = outcome(tmp_path / "run")
    assert said == "finished"
    assert "test" not in result
    assert result["validation"]["best"]["selected_on"] == "validation"
    assert result["validation"]["last"]["samples"] == 12


def test_patience_ends_a_run_and_a_resumed_one_stays_ended(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_selected", lambda self, scores: -scores["test"]["samples"])  # never better
    changes = {"epochs": 3, "patience": 1}
    for resume in ("never", "auto"):
        assert train(options(data, tmp_path / "run", resume=resume, **changes)) == FINISHED
        _, result = outcome(tmp_path / "run")
        assert (result["test"]["last"]["epoch"], result["test"]["best"]["epoch"]) == (2, 1)
        assert len([r for r in records(tmp_path / "run") if r["kind"] == "epoch"]) == 2


def test_the_best_epoch_is_chosen_by_what_was_asked_for(data: Path, tmp_path: Path) -> None:
    small_images(tmp_path / "skewed", (9, 2, 2, 1))
    for select_by in ("balanced", "all"):
        run_dir = tmp_path / select_by
        assert (
            train(options(data, run_dir, select_by=select_by, epochs=2, **{"data.validation": tmp_path / "skewed"}))
            == 0
        )
        numbers = [r["validation"][select_by] for r in records(run_dir) if r["kind"] == "epoch"]
        _, result = outcome(run_dir)
        assert result["test"]["best"]["epoch"] == 1 + numbers.index(max(numbers))
        assert result["test"]["best"]["selected_by"] == select_by


def test_a_run_that_never_mixes_or_never_leaves_its_warm_up_says_so(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"method.plain_first": 4, "method.plain_last": 3, "epochs": 1}
    assert train(options(data, tmp_path / "run", **changes)) == FINISHED
    _, result = outcome(tmp_path / "run")
    assert [warning[:35] for warning in result["warnings"]] == [
        "no step of this run mixes images, d",
        "the warm-up is longer than the run:",
    ]
    assert "no step of this run mixes images" in caplog.text
    assert "WARNING: no step of this run mixes images" in capsys.readouterr().out
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    assert load(best)["classes"] == {"names": [f"class {c}" for c in range(4)], "samples": [14, 7, 4, 2]}
    with pytest.raises(ValueError, match="has only weights, not a state to resume from"):
        train(options(data, tmp_path / "run", resume=best, **changes))
    assert train(options(data, tmp_path / "run", resume=tmp_path / "run", **changes)) == FINISHED
