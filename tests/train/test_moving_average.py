"""ema_decay: the average of the weights is what a plain loop computes, is what gets evaluated, and survives a kill."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.loader import LoadedStep, evaluation_batches
from shards.reader import ShardSet
from tests.helpers.processes import start
from tests.helpers.runs import arguments, options, records
from train.checkpoints.files import AVERAGED, load
from train.checkpoints.trained import load_trained
from train.loop.trainer import Trainer
from train.options import parse
from train.run import train

DECAY = 0.9


@pytest.fixture(scope="module")
def run_dir(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("average") / "run"
    train(options(data, run_dir, keep_checkpoints=100, ema_decay=DECAY))
    return run_dir


def after_epoch(run_dir: Path, epoch: int) -> dict[str, Any]:
    return load(run_dir / "checkpoints" / f"epoch{epoch + 1:04d}-step000000.pt")


def test_the_average_follows_the_weights_by_its_definition(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, torch.Tensor]] = []
    take_step = Trainer.train_step

    def recorded(self: Trainer, loaded: LoadedStep) -> None:
        take_step(self, loaded)
        steps.append({name: value.clone() for name, value in self.bare_model.state_dict().items()})

    monkeypatch.setattr(Trainer, "train_step", recorded)
    train(options(data, tmp_path / "run", ema_decay=DECAY))
    average = after_epoch(tmp_path / "run", 2)[AVERAGED]
    assert len(steps) == 12
    for name in average:
        if average[name].is_floating_point():
            expected = torch.zeros_like(average[name])
            for number, weights in enumerate(steps):  # number: of steps before this one
                keep = min(DECAY, 1 - (1 + number) ** (-2 / 3))
                expected = keep * expected + (1 - keep) * weights[name]
            torch.testing.assert_close(average[name], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(average["conv1.weight"], steps[-1]["conv1.weight"])


def test_training_does_not_notice(run_dir: Path, data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path / "plain"))
    plain, averaged = after_epoch(tmp_path / "plain", 2), after_epoch(run_dir, 2)
    for name, value in plain["model"].items():
        assert torch.equal(value, averaged["model"][name])
    assert AVERAGED not in plain


def test_the_average_is_what_is_evaluated_and_read_back(run_dir: Path) -> None:
    newest = run_dir / "checkpoints" / "epoch0003-step000000.pt"
    average = after_epoch(run_dir, 2)[AVERAGED]
    for name, value in load_trained(newest, torch.device("cpu")).model.state_dict().items():
        assert torch.equal(value, average[name])
    best = load(run_dir / "checkpoints" / "best.pt")
    of_that_epoch = after_epoch(run_dir, best["scores"]["epoch"])[AVERAGED]
    for name, value in best["model"].items():
        assert torch.equal(value, of_that_epoch[name])


def test_a_resumed_run_has_the_same_average(run_dir: Path, data: Path, tmp_path: Path) -> None:
    again = shutil.copytree(run_dir, tmp_path / "again")
    for path in (again / "checkpoints").glob("epoch*.pt"):
        if path.name > "epoch0001-step000000.pt":
            path.unlink()
    train(options(data, again, ema_decay=DECAY, resume="auto"))
    assert records(again) == records(run_dir)
    average = after_epoch(again, 2)[AVERAGED]
    for name, value in after_epoch(run_dir, 2)[AVERAGED].items():
        assert torch.equal(value, average[name])


def test_two_processes_evaluate_one_average(data: Path, tmp_path: Path) -> None:
    ranks = start(arguments(data, tmp_path / "run", ema_decay=DECAY, epochs=1), tmp_path / "log", ranks=2)
    assert ranks.wait() == [0, 0], ranks.output()
    # One process finds the very numbers that two found: their averages were one, batch norm's statistics included.
    newest = max((tmp_path / "run" / "checkpoints").glob("epoch*.pt"))
    trained = load_trained(newest, torch.device("cpu"))
    test_set = ShardSet.open(data / "test")
    [batch] = evaluation_batches(test_set, trained.preset.evaluation, len(test_set), torch.device("cpu"))
    loss = torch.nn.functional.cross_entropy(trained.logits(batch.images[0]), batch.labels)
    assert records(tmp_path / "run")[-1]["test"]["loss"] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("decay", [0, 1, -0.5])
def test_a_decay_that_averages_nothing_is_refused(data: Path, capsys: pytest.CaptureFixture[str], decay: float) -> None:
    with pytest.raises(SystemExit):
        parse(arguments(data, data / "run", ema_decay=decay))
    assert "expected a number between 0 and 1" in capsys.readouterr().err
