"""Checkpoints are complete or absent, refuse other runs, and execute nothing."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from pipeline.plan import Position
from train.checkpoints.files import CheckpointFolder, check_fit, load, load_weights, save


def folder(tmp_path: Path, keep: int = 2) -> CheckpointFolder:
    made = CheckpointFolder(tmp_path / "checkpoints", keep)
    made.prepare()
    return made


def test_the_last_few_are_kept_and_the_best_is_left_alone(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    save(checkpoints.best, {"model": {}})
    for step in (5, 20, 100):
        checkpoints.save(Position(1, step), {"step": step})
    checkpoints.save(Position(2, 0), {"step": 0})
    assert [position for position, _ in checkpoints.positions()] == [Position(1, 100), Position(2, 0)]
    assert checkpoints.best.exists()


def test_checkpoints_behind_which_a_run_went_back_never_push_out_the_new_one(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path, keep=1)
    damaged = checkpoints.save(Position(2, 0), {"step": 0})
    os.truncate(damaged, 10)
    checkpoints.save(Position(1, 5), {"step": 5})
    assert [position for position, _ in checkpoints.positions()] == [Position(1, 5)]


def test_a_run_does_not_silently_begin_anew_where_no_checkpoint_can_be_read(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    assert checkpoints.load_latest() is None
    os.truncate(checkpoints.save(Position(0, 1), {"step": 1}), 10)
    with pytest.raises(ValueError, match="none of 1 checkpoints can be read"):
        checkpoints.load_latest()


def test_a_changed_bit_of_a_tensor_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save(path, {"model": {"weight": torch.ones(1000)}})
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(100).numpy().tobytes()) + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"the checksum of .* does not match its content"):
        load(path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(Position(0, 1), {"step": 1})
    newest = checkpoints.save(Position(0, 2), {"step": 2, "tensor": torch.zeros(1000)})
    os.truncate(newest, newest.stat().st_size // 2)
    found = checkpoints.load_latest()
    assert found is not None
    assert found[1]["step"] == 1
    assert newest.name in caplog.text


def test_what_a_killed_run_was_writing_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(Position(0, 1), {"step": 1})

    def die(content: object, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(Position(0, 2), {"step": 2})
    assert len(checkpoints.positions()) == 1
    checkpoints.prepare()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["epoch0000-step000001.pt"]


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = tmp_path / "evil.pt"
    torch.save({"format_version": 1, "model": Evil()}, path)
    with pytest.raises(ValueError, match="not a checkpoint of tensors and plain containers"):
        load(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_and_another_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load(tmp_path / "none.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="checkpoint format None, expected 2"):
        load(tmp_path / "other.pt")


def test_a_checkpoint_of_another_run_is_refused_with_both_values() -> None:
    with pytest.raises(ValueError, match=r"classes: 10 in the checkpoint, 100 in this run") as refused:
        check_fit(Path("x.pt"), {"classes": 10, "seed": 0, "new": 1}, {"classes": 100, "seed": 0})
    assert "seed" not in str(refused.value)
    assert "new: 1 in the checkpoint, None in this run" in str(refused.value)


def test_initial_weights_report_what_does_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "stage1.pt"
    first = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    save(path, {"model": first.state_dict()})
    same_trunk = torch.nn.ModuleDict({"0": torch.nn.Linear(3, 4), "head": torch.nn.Linear(4, 2)})
    load_weights(same_trunk, path, lambda name: True)
    assert torch.equal(same_trunk["0"].weight, first[0].weight)
    assert "head.weight" in caplog.text
    with pytest.raises(ValueError, match=r"head\.bias, head\.weight not in the checkpoint, but the method continues"):
        load_weights(same_trunk, path, lambda name: True, lambda name: name.startswith("head."))
    load_weights(same_trunk, path, lambda name: name.startswith("0."), lambda name: name.startswith("head."))
    with pytest.raises(ValueError, match=r"0\.weight \(4, 3\) in the checkpoint, \(5, 3\) in the model"):
        load_weights(torch.nn.Sequential(torch.nn.Linear(3, 5)), path, lambda name: True)
    with pytest.raises(ValueError, match="no parameter name is shared"):
        load_weights(torch.nn.ModuleDict({"other": torch.nn.Linear(3, 4)}), path, lambda name: True)
