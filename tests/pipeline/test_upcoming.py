"""What the loader says of the coming reads is what it then reads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import upcoming
from pipeline.loader import Loader
from pipeline.mix_rule import MixRule
from pipeline.plan import Plan, Position, Stream
from pipeline.sampling import ClassWeighted, Shuffled
from pipeline.upcoming import NOT_SOON, Upcoming
from pipeline.views.view import RandomResizedCrop, View, Whole
from tests.helpers.shard_sets import UnreadableSet, small_images

VIEW = View(RandomResizedCrop(32))
STREAMS = (Stream("original", Shuffled(), (VIEW,)), Stream("foreground", ClassWeighted(), (VIEW,), "mixing"))


@pytest.fixture
def plan() -> Plan:
    return Plan({"train": UnreadableSet((60, 30, 14))}, STREAMS, MixRule(plain_first=1, plain_last=1), 5, 16, 5)


def slowly(plan: Plan, now: Position, machine: tuple[int, int], accumulation: int) -> np.ndarray:
    """Walk over all rows of all steps; a row belongs to the micro-batch and the machine in whose part it lies."""
    found = np.full(len(plan.datasets["train"]), NOT_SOON, np.uint32)
    positions = [Position(epoch, step) for epoch in range(plan.epochs) for step in range(plan.steps_per_epoch)]
    coming = [at for at in positions if at >= now and at.epoch <= now.epoch + 1]
    for number, at in enumerate(coming):
        for stream in plan.step(at.epoch, at.step).streams.values():
            parts = machine[1] * accumulation
            starts = [len(stream) * part // parts for part in range(parts + 1)]
            for micro in range(accumulation):
                part = micro * machine[1] + machine[0]
                own = stream.sample_ids[starts[part] : starts[part + 1]]
                found[own] = np.minimum(found[own], number * accumulation + micro)
    return found


@pytest.mark.parametrize("now", [Position(0, 0), Position(1, 3), Position(3, 6), Position(4, 6)])
@pytest.mark.parametrize(("machine", "accumulation"), [((0, 1), 1), ((1, 2), 1), ((0, 1), 2), ((1, 2), 2)])
def test_the_next_use_of_each_sample_is_that_of_the_steps(
    plan: Plan, now: Position, machine: tuple[int, int], accumulation: int
) -> None:
    found = Upcoming(plan, now, machine, accumulation).next_uses("train")
    # 104 samples: the last batch has 8 rows, two in each of four parts, so none is filled up with others.
    np.testing.assert_array_equal(found, slowly(plan, now, machine, accumulation))
    assert (found[found < NOT_SOON] < 2 * plan.steps_per_epoch * accumulation).all()


def test_what_is_too_far_ahead_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan({"train": UnreadableSet((60, 30, 14))}, STREAMS[:1], None, 5, 16, 5)
    monkeypatch.setattr(upcoming, "_LOOKED_AHEAD", 40)
    found = Upcoming(plan, Position(0, 0), (0, 1)).next_uses("train")
    assert sorted(set(found.tolist())) == [0, 1, 2, NOT_SOON]


def test_asking_does_not_make_the_plan_forget_its_order(plan: Plan) -> None:
    plan.step(1, 0)
    kept = plan._samplers["original"]._kept
    Upcoming(plan, Position(1, 2), (0, 1)).next_uses("train")
    assert plan._samplers["original"]._kept is kept


def test_a_loader_says_where_it_is_until_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_images(tmp_path / "set", (12, 4))
    plan = Plan({"train": dataset}, (Stream("original", Shuffled(), (View(Whole(32)),)),), None, 0, 4, 2)
    said: list[Callable[[], np.ndarray] | None] = []
    monkeypatch.setattr(dataset, "expect", said.append)
    with Loader(plan, torch.device("cpu"), rank=1, world_size=2, start=Position(0, 1), executor="reference") as loader:
        for number, _ in enumerate(loader, start=1):
            next_uses = said[-1]
            assert next_uses is not None
            here = slowly(plan, Position(*divmod(number, plan.steps_per_epoch)), (0, 1), 1)
            np.testing.assert_array_equal(next_uses(), here)
    assert said[-1] is None
