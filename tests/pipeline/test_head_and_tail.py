"""Streams of FSA's second phase: which classes are the head, and groups of rows around images of the tail."""

import numpy as np
import pytest

from pipeline.head_and_tail import HeadImages, TailGroups, is_head
from pipeline.plan import Plan, Stream
from pipeline.rng import RowDraws
from pipeline.views.presets import WHOLE_32
from tests.helpers.shard_sets import UnreadableSet
from tools.sources.subsets import long_tailed_counts

COUNTS = (40, 30, 7, 3, 2)
DATASET = UnreadableSet(COUNTS)
PARTNERS = np.array([[0, 0], [0, 0], [1, 3], [4, 0], [2, 1]])
LABELS = DATASET.index["label"].astype(np.int64)


@pytest.mark.parametrize(
    ("counts", "head"),
    [
        ((10, 40, 5, 40, 3, 2), {0, 1, 3}),
        ((50, 30, 10, 10), {0, 1, 2}),
        ((6, 2, 1, 1), {0, 1, 2}),  # 0.9 · 10 is no more than 9, whatever floating point makes of it
        ((5, 5), {0, 1}),
    ],
)
def test_the_head_are_the_fewest_largest_classes_that_hold_its_share(counts: tuple[int, ...], head: set[int]) -> None:
    assert set(np.flatnonzero(is_head(np.array(counts), 0.9))) == head


@pytest.mark.parametrize(
    ("largest", "classes", "sizes"), [(5000, 10, (7, 7, 6, 5, 4)), (500, 100, (72, 64, 54, 48, 42))]
)
def test_the_head_of_long_tailed_cifar(largest: int, classes: int, sizes: tuple[int, ...]) -> None:
    counts = [long_tailed_counts(largest, classes, 1 / ratio) for ratio in (10, 20, 50, 100, 200)]
    assert tuple(int(is_head(each, 0.9).sum()) for each in counts) == sizes
    if classes == 100:
        assert (counts[3][48:].sum(), counts[3].sum()) == (1050, 10_847)


def ids(sampling: HeadImages | TailGroups, rows: np.ndarray, step: int = 0) -> np.ndarray:
    return sampling.over(DATASET).ids(RowDraws(3, 1, step, rows), "any", 0)


def test_images_of_the_head_come_alike() -> None:
    drawn = ids(HeadImages(), np.arange(40_000))
    classes = np.bincount(LABELS[drawn], minlength=5) / len(drawn)
    np.testing.assert_allclose(classes, [40 / 77, 30 / 77, 7 / 77, 0, 0], atol=0.01)
    assert len(set(drawn)) == 77


@pytest.mark.parametrize(("alike", "shares"), [("images", (3 / 5, 2 / 5)), ("classes", (1 / 2, 1 / 2))])
def test_a_group_is_an_image_of_the_tail_and_one_of_each_partner(alike: str, shares: tuple[float, float]) -> None:
    sampling = TailGroups(PARTNERS, 0.9, alike)  # type: ignore[arg-type]
    drawn = ids(sampling, np.arange(30_000)).reshape(-1, 3)
    tail = LABELS[drawn[:, 0]]
    np.testing.assert_allclose(np.bincount(tail, minlength=5)[3:] / len(tail), shares, atol=0.02)
    assert set(tail) == {3, 4}
    np.testing.assert_array_equal(LABELS[drawn[:, 1:]], PARTNERS[tail])
    assert len(set(drawn[tail == 3, 2])) == COUNTS[0], "every image of a partner comes"


def test_a_row_does_not_depend_on_what_other_rows_are_asked_for() -> None:
    sampling, rows = TailGroups(PARTNERS), np.arange(24)
    whole = ids(sampling, rows)
    np.testing.assert_array_equal(ids(sampling, rows[9:18]), whole[9:18])
    np.testing.assert_array_equal(ids(sampling, rows[7:8]), whole[7:8])
    assert (ids(sampling, rows, step=1) != whole).any()


def test_a_plan_with_other_partners_has_another_fingerprint() -> None:
    def fingerprint(partners: np.ndarray) -> dict:
        streams = (Stream("original", HeadImages(), (WHOLE_32,)), Stream("tail", TailGroups(partners), (WHOLE_32,)))
        return Plan({"train": DATASET}, streams, None, 0, 6, 1).fingerprint()  # type: ignore[dict-item]

    other = PARTNERS.copy()
    other[3] = other[3, ::-1]
    assert fingerprint(PARTNERS) == fingerprint(PARTNERS.copy()) != fingerprint(other)
