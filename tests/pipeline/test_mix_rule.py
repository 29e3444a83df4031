from typing import Any

import numpy as np
import pytest

from pipeline.mix_rule import MixPlan, MixRule, cut_box, uncovered_share

SIZE = (32, 32)


@pytest.mark.parametrize(
    ("height", "width", "lam", "row", "column", "box", "corrected"),
    [  # computed with CMO's official code
        (32, 32, 0.5, 16, 16, (5, 5, 27, 27), 0.52734375),
        (32, 32, 0.5, 0, 31, (0, 20, 11, 32), 0.87109375),
        (32, 32, 0.9961, 10, 10, (10, 10, 10, 10), 1.0),
        (32, 32, 0.0, 16, 16, (0, 0, 32, 32), 0.0),
        (32, 32, 0.0, 0, 0, (0, 0, 16, 16), 0.75),
        (224, 224, 0.3, 100, 220, (7, 127, 193, 224), 0.6404257015),
        (224, 224, 0.9, 7, 111, (0, 76, 42, 146), 0.94140625),
        (32, 48, 0.4, 20, 5, (8, 0, 32, 23), 0.640625),
    ],
)
def test_boxes_of_cmo(
    height: int, width: int, lam: float, row: int, column: int, box: tuple[int, ...], corrected: float
) -> None:
    assert cut_box(height, width, lam, row, column, "floor") == box
    assert uncovered_share(box, height, width) == pytest.approx(corrected, abs=1e-10)


@pytest.mark.parametrize(
    ("side", "lam", "row", "column", "box"),
    [  # computed with GLMC's released code
        (32, 0.5, 16, 16, (5, 5, 27, 27)),
        (32, 0.75, 2, 30, (0, 22, 10, 32)),
        (32, 0.9, 31, 0, (26, 0, 32, 5)),
        (32, 0.05, 10, 20, (0, 4, 26, 32)),
        (224, 0.36, 112, 40, (22, 0, 202, 130)),
        (32, 0.0, 16, 16, (0, 0, 32, 32)),
        (32, 1.0, 5, 5, (5, 5, 5, 5)),
    ],
)
def test_boxes_of_glmc(side: int, lam: float, row: int, column: int, box: tuple[int, ...]) -> None:
    assert cut_box(side, side, lam, row, column, "ceil") == box


def test_the_sequence_of_cmos_code_from_numpys_legacy_generator() -> None:
    legacy = np.random.RandomState(0)
    steps = []
    for _ in range(6):
        if legacy.rand() < 0.5:
            lam, row, column = legacy.beta(1, 1), legacy.randint(32), legacy.randint(32)
            box = cut_box(32, 32, lam, row, column, "floor")
            steps.append((lam, box, uncovered_share(box, 32, 32)))
        else:
            steps.append(None)
    assert steps[:4] == [None] * 4
    assert steps[4] == (0.9287239336537655, (5, 16, 13, 24), 0.9375)
    assert steps[5] == (0.868409043326814, (0, 0, 5, 6), 0.970703125)


def test_the_sequence_of_glmcs_code_from_numpys_legacy_generator() -> None:
    legacy = np.random.RandomState(0)
    boxes = []
    for _ in range(3):
        legacy.beta(0.5, 0.5)
        lam = legacy.beta(1, 1)
        boxes.append((round(lam, 8), cut_box(32, 32, lam, legacy.randint(32), legacy.randint(32), "ceil")))
    assert boxes == [
        (0.44912526, (7, 4, 31, 28)),
        (0.86840904, (0, 0, 6, 7)),
        (0.55722649, (0, 19, 14, 32)),
    ]


def test_the_window_leaves_out_the_first_four_and_the_last_three_epochs() -> None:
    active = [epoch for epoch in range(200) if MixRule().active(epoch, 200)]
    assert active == list(range(4, 197))
    rule = MixRule(probability=1.0)
    assert [rule.mixes(0, epoch, 0, 10) for epoch in range(10)] == [False] * 4 + [True] * 3 + [False] * 3


def test_a_run_shorter_than_both_margins_never_mixes() -> None:
    assert not any(MixRule(probability=1.0).active(epoch, 7) for epoch in range(7))


def test_the_coin_falls_as_often_as_asked_and_does_not_depend_on_the_draw() -> None:
    rule = MixRule(probability=0.3, plain_first=0, plain_last=0)
    coins = [rule.mixes(0, 0, step, 1) for step in range(5000)]
    assert np.mean(coins) == pytest.approx(0.3, abs=0.025)
    assert rule.mixing_steps(0, 0, 5000, 1).tolist() == np.flatnonzero(coins).tolist()
    assert coins[:50] == [rule.draw(0, 0, step, 1, 2, SIZE).paste for step in range(50)]


def plans(rule: Any, steps: int, image_size: Any = SIZE) -> list[MixPlan]:
    return [rule.draw(0, 0, step, 1, 3, image_size) for step in range(steps)]


def test_corrected_lambda_is_the_share_outside_the_box() -> None:
    rule = MixRule(probability=1.0, plain_first=0, plain_last=0)
    for plan in plans(rule, 200, (20, 44)):
        canvas = np.zeros((20, 44))
        top, left, bottom, right = plan.boxes[0]
        canvas[top:bottom, left:right] = 1
        assert plan.lam[0] == pytest.approx(1 - canvas.mean(), abs=1e-12)
        # One λ and one box for the whole batch.
        assert (plan.lam == plan.lam[0]).all()
        assert (plan.boxes == plan.boxes[0]).all()
        assert (plan.lam.dtype, plan.boxes.dtype, plan.boxes.shape) == (np.float64, np.int32, (3, 4))


@pytest.mark.parametrize(("rounding", "mean_area"), [("floor", 0.300), ("ceil", 0.321)])
def test_the_mean_pasted_area_is_that_of_the_papers_code(rounding: str, mean_area: float) -> None:
    rule = MixRule(probability=1.0, plain_first=0, plain_last=0, rounding=rounding)
    assert 1 - np.mean([plan.lam[0] for plan in plans(rule, 4000)]) == pytest.approx(mean_area, abs=0.015)


def test_uncorrected_lambda_is_the_one_drawn() -> None:
    corrected = MixRule(probability=1.0, plain_first=0, plain_last=0)
    raw = MixRule(probability=1.0, plain_first=0, plain_last=0, correct_lambda=False)
    lam = np.array([plan.lam[0] for plan in plans(raw, 3000)])
    assert np.quantile(lam, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.04)
    for one, other in zip(plans(raw, 50), plans(corrected, 50), strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_mixup_has_a_lambda_and_no_box() -> None:
    rule = MixRule("mixup", probability=1.0, beta=0.2, plain_first=0, plain_last=0)
    drawn = plans(rule, 2000)
    assert not any(plan.boxes.any() for plan in drawn)
    # Variance of Beta(a, a): 1 / (4 (2a + 1)).
    assert np.var([plan.lam[0] for plan in drawn]) == pytest.approx(1 / (4 * 1.4), abs=0.012)


def test_no_mix_is_empty_boxes_and_lambda_one() -> None:
    plan = MixRule().draw(0, 0, 0, 200, 5, SIZE)
    assert not plan.paste
    assert plan.lam.tolist() == [1.0] * 5
    assert plan.boxes.tolist() == [[0, 0, 0, 0]] * 5
    assert len(MixPlan.none(5).take(np.array([0, 0]))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, "probability must be in"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"plain_first": -1}, "at least 0, found -1"),
    ],
)
def test_impossible_rules_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixRule(**options)
