"""Scores from predictions: groups, empty groups, calibration; each image exactly once."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.loader import Batch
from pipeline.plan import StreamPlan
from shards.class_counts import CMO_RULE, SHIFTED_RULE, GroupRule
from train.evaluation.metrics import expected_calibration_error
from train.evaluation.scores import Predictions, predict, score

COUNTS = np.array([300, 101, 100, 20, 5])
CONFUSION = np.array([[8, 1, 1, 0, 0], [2, 7, 1, 0, 0], [3, 1, 5, 1, 0], [4, 2, 1, 3, 0], [5, 2, 1, 1, 1]])


def predictions(confusion: np.ndarray) -> Predictions:
    labels, predicted = (np.repeat(axis.ravel(), confusion.ravel()) for axis in np.indices(confusion.shape))
    ones = np.ones(len(labels))
    alone = np.zeros((len(labels), 0), dtype=bool)
    return Predictions(labels, predicted, labels == predicted, ones.astype(np.float32), ones.astype(np.float32), alone)


@pytest.mark.parametrize(("rule", "groups"), [(CMO_RULE, (75, 40, 10)), (SHIFTED_RULE, (75, 50, 20))])
def test_group_accuracy(rule: GroupRule, groups: tuple[float, float, float]) -> None:
    scores = score(predictions(CONFUSION), COUNTS, rule)
    assert scores.numbers["all"] == pytest.approx(48)
    assert [scores.numbers[name] for name in ("many", "medium", "few")] == pytest.approx(list(groups))
    np.testing.assert_array_equal(scores.confusion, CONFUSION)


def test_an_empty_group_has_no_number_and_an_absent_class_counts_in_no_mean() -> None:
    confusion = CONFUSION.copy()
    confusion[4] = 0
    scores = score(predictions(confusion), COUNTS, GroupRule(many_min=1000, few_max=5))
    assert scores.numbers["many"] is None
    assert scores.numbers["few"] is None
    assert np.isnan(scores.recall[4])
    assert scores.numbers["balanced"] == pytest.approx(100 * np.mean([0.8, 0.7, 0.5, 0.3]))


def test_calibration_error_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500).astype(np.float32), rng.random(500) < 0.4
    expected = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, rel=1e-5)
    assert expected_calibration_error(np.ones(4, np.float32), np.array([True, True, False, False])) == 0.5


def method() -> SimpleNamespace:
    """Logits are the first pixels of the image."""
    input_builder = SimpleNamespace(plain=lambda images: images.float())
    return SimpleNamespace(
        context=SimpleNamespace(input_builder=input_builder),
        objective=SimpleNamespace(eval_members=lambda model, images: images[:, 0, :, 0][None]),
    )


def batch(ids: list[int], scores: list[list[int]], labels: list[int]) -> Batch:
    images = torch.tensor(scores, dtype=torch.uint8)[:, None, :, None].expand(-1, 1, -1, 3)
    plan = StreamPlan(np.arange(len(ids)), np.ones(len(ids), np.float32), np.array(ids), np.array(labels), ())
    return Batch((images,), torch.tensor(labels), torch.ones(len(ids)), plan)


def test_predictions_come_in_the_order_of_the_ids() -> None:
    batches = [batch([2, 0], [[0, 9, 1], [5, 2, 2]], [1, 2]), batch([1], [[1, 2, 3]], [2])]
    found = predict(method(), torch.nn.Identity(), batches, 3, nullcontext)
    assert found.labels.tolist() == [2, 2, 1]
    assert found.predicted.tolist() == [0, 2, 1]
    assert found.in_top5.all()  # only three classes


def test_members_of_an_ensemble_are_scored_alone_and_by_their_mean() -> None:
    ensemble = method()
    second = torch.tensor([[0.0, 5, 0], [0, 0, 0.5]])
    ensemble.objective.eval_members = lambda model, images: torch.stack([images[:, 0, :, 0], second])
    batches = [batch([1, 0], [[4, 0, 0], [3, 1, 0]], [0, 0])]
    found = predict(ensemble, torch.nn.Identity(), batches, 2, nullcontext)
    assert found.predicted.tolist() == [0, 1]  # means (1.5, 0.5, 0.25) and (2, 2.5, 0)
    numbers = score(found, np.array([3, 2, 1]), CMO_RULE).numbers
    assert (numbers["all"], numbers["expert0"], numbers["expert1"], numbers["experts_mean"]) == (50, 100, 0, 50)
    assert not any("expert" in name for name in score(predictions(CONFUSION), COUNTS, CMO_RULE).numbers)


@pytest.mark.parametrize("ids", [[0, 1, 1], [0, 1]])
def test_a_repeated_or_missing_sample_is_an_error(ids: list[int]) -> None:
    batches = [batch(ids, [[1, 0, 0]] * len(ids), [0] * len(ids))]
    with pytest.raises(RuntimeError, match="some twice or not at all"):
        predict(method(), torch.nn.Identity(), batches, 3, nullcontext)
