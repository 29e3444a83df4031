"""Labels drawn ahead are those of the plan, and drawn by another thread than that which asks."""

import threading
from dataclasses import astuple

import numpy as np
import pytest

from pipeline.labels_ahead import LabelsAhead
from pipeline.mix_rule import MixRule
from pipeline.plan import Plan, Position, Stream
from pipeline.rng import RowDraws
from pipeline.sampling import ClassWeighted, ProgressivelyBalanced, Redrawn, Shuffled
from pipeline.views.view import View, Whole
from tests.helpers.shard_sets import UnreadableSet

VIEWS = (View(Whole(32)),)
STREAMS = (
    Stream("original", Shuffled(), VIEWS),
    Stream("foreground", ClassWeighted(), VIEWS, "mixing"),
    Stream("later", ProgressivelyBalanced(4), VIEWS, first_epoch=2),
    Stream("meta", Redrawn(), VIEWS, full_batches=True),
)


@pytest.fixture
def plan() -> Plan:
    return Plan({"train": UnreadableSet((40, 9, 0, 3))}, STREAMS, MixRule(plain_first=1, plain_last=1), 3, 16, 4)


def test_they_are_the_labels_of_the_samples(plan: Plan) -> None:
    labels = plan.datasets["train"].index["label"]
    stop = Position(plan.epochs, 0)
    ahead = LabelsAhead(plan, stop)
    for at in plan.positions(Position(0, 2), stop):
        whole = ahead.global_batch(at)
        assert whole.sizes == plan.global_batch(*astuple(at)).sizes and (whole.epoch, whole.step) == astuple(at)
        for stream in whole.sizes:
            np.testing.assert_array_equal(whole.labels(stream), labels[plan.sample_ids(stream, *astuple(at))])
    ahead.close()


def test_another_thread_draws_what_was_asked_for_before(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int, bool]] = []
    original = plan._ids

    def noted(stream: str, draws: RowDraws) -> np.ndarray:
        drawn.append((stream, draws.step, threading.current_thread() is threading.main_thread()))
        return original(stream, draws)

    monkeypatch.setattr(plan, "_ids", noted)
    ahead = LabelsAhead(plan, Position(0, 3))
    for step in range(3):
        whole = ahead.global_batch(Position(0, step))
        if step == 1:
            whole.labels("original")
            whole.labels("original")
    ahead.close()
    assert drawn == [("original", 1, True)]
    ahead = LabelsAhead(plan, Position(0, 4))
    drawn.clear()
    for step in range(4):
        ahead.global_batch(Position(0, step)).labels("original")
    ahead.close()  # nothing is drawn for a step behind the stop
    assert sorted(drawn) == [
        ("original", 0, True),
        ("original", 1, True),
        ("original", 2, False),
        ("original", 3, False),
    ]
    assert not [thread for thread in threading.enumerate() if "labels-ahead" in thread.name]
