"""Builds and trainings that are really killed end as if nothing had happened."""

from pathlib import Path

import pytest

from tests.faults.__main__ import all_kinds, own_kinds, tuning_kinds
from tests.helpers.rounds import run_rounds


@pytest.mark.parametrize("kind", [0, 1, 2, 4], ids=["build worker", "build parent", "training", "two ranks"])
def test_killed_work_continues_to_the_same_bits(tmp_path: Path, kind: int) -> None:
    [figures] = run_rounds([all_kinds(tmp_path)[kind]], rounds=1, seed=1).values()
    assert not figures.differences
    assert figures.kills >= 1


@pytest.mark.parametrize(
    "kind",
    [pytest.param(0, id="adamw, annealed squares"), pytest.param(5, id="cached on two ranks", marks=pytest.mark.slow)],
)
def test_killed_fine_tuning_continues_to_the_same_bits(tmp_path: Path, kind: int) -> None:
    [figures] = run_rounds([tuning_kinds(tmp_path)[kind]], rounds=1, seed=2).values()
    assert not figures.differences
    assert figures.kills >= 1


@pytest.mark.slow
def test_a_training_of_ones_own_is_killed_and_compared_too(tmp_path: Path, data: Path) -> None:
    options = ["--recipe", "recipes/cifar10-lt/metasaug.yaml", "--data.train", str(data / "train")]
    options += ["--data.test", str(data / "test"), "--data.meta", str(data / "train")]
    options += ["--model.width", "4", "--method.meta_from_epoch", "0", "--batch_size", "8", "--ema_decay", "0.9"]
    kind = own_kinds(tmp_path, 4, options)[0]
    [figures] = run_rounds([kind], rounds=1, seed=3).values()
    assert not figures.differences
    assert figures.kills >= 1


@pytest.mark.slow
def test_fifty_rounds_of_every_kind_show_no_difference(tmp_path: Path) -> None:
    figures = run_rounds(all_kinds(tmp_path), rounds=50, seed=0)
    assert not [difference for sums in figures.values() for difference in sums.differences]
    assert all(sums.kills > sums.rounds for sums in figures.values())
