"""Learning rates of the published schedules, and how they follow another run length."""

import pytest

from train.schedules import Schedule, ScheduleOptions

S1 = ScheduleOptions()
S2 = ScheduleOptions(for_epochs=100, milestones=(60, 80), factors=(0.1, 0.01))
S3 = ScheduleOptions(for_epochs=200, milestones=(75, 160), factors=(0.1, 0.01))
S4 = ScheduleOptions(
    for_epochs=400, milestones=(321, 361), factors=(0.1, 0.01), warmup_epochs=10, warmup_overshoots=True
)
S5 = ScheduleOptions(kind="cosine", for_epochs=400, warmup_epochs=10)


@pytest.mark.parametrize(
    ("options", "lr", "expected"),
    [
        (S1, 0.1, {0: 0.02, 3: 0.08, 4: 0.1, 159: 0.1, 160: 0.001, 179: 0.001, 180: 1e-5}),
        (S2, 0.1, {0: 0.02, 5: 0.1, 59: 0.1, 60: 0.01, 79: 0.01, 80: 0.001}),
        (S3, 0.1, {4: 0.1, 74: 0.1, 75: 0.01, 159: 0.01, 160: 0.001}),
        (S4, 0.1, {0: 0.01, 9: 0.1, 10: 0.11, 11: 0.1, 320: 0.1, 321: 0.01, 360: 0.01, 361: 0.001}),
        (S5, 0.02, {0: 0.002, 9: 0.02, 10: 0.01999967721, 200: 0.01036148560, 399: 3.22785e-7}),
    ],
    ids=["S1", "S2", "S3", "S4", "S5"],
)
def test_published_rates(options: ScheduleOptions, lr: float, expected: dict[int, float]) -> None:
    schedule = Schedule(options, lr, options.for_epochs)
    for epoch, rate in expected.items():
        assert schedule.lr(epoch) == pytest.approx(rate, rel=1e-6), f"epoch {epoch}"


def test_milestones_follow_the_length_of_the_run_and_warm_up_does_not() -> None:
    schedule = Schedule(S1, 0.1, epochs=20)
    assert schedule.milestones == (16, 18)
    assert [round(schedule.lr(e), 8) for e in (0, 4, 15, 16, 18)] == [0.02, 0.1, 0.1, 0.001, 1e-5]


def test_a_cosine_without_warm_up_ends_near_zero() -> None:
    schedule = Schedule(ScheduleOptions(kind="cosine", for_epochs=200, warmup_epochs=0), 0.01, 200)
    assert schedule.lr(0) == 0.01
    assert schedule.lr(50) == pytest.approx(0.008535534, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"milestones": (160,), "factors": (0.1, 0.01)}, "1 milestones, 2 factors"),
        ({"milestones": (180, 160)}, "must increase"),
        ({"for_epochs": 0}, "for_epochs is 0"),
    ],
)
def test_contradictions_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleOptions(**values)
