import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rng import RowDraws, generator


def test_a_generator_is_philox_at_the_stated_key_and_counter() -> None:
    word = int.from_bytes(hashlib.blake2b(b"original/samples", digest_size=8).digest(), "little")
    expected = np.random.Philox(key=np.array([7, word], np.uint64), counter=np.array([0, 0, 5, 3], np.uint64))
    drawn = generator(7, "original/samples", epoch=3, step=5).bit_generator
    assert drawn.random_raw(20).tolist() == expected.random_raw(20).tolist()


def test_seed_purpose_epoch_and_step_all_matter() -> None:
    arguments = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (2**64 - 1, "a", 0, 0)]
    draws = {tuple(generator(*each).integers(0, 2**63, 4).tolist()) for each in arguments}
    assert len(draws) == len(arguments)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.integers(0, 5000), min_size=1, max_size=20),
    shape=st.sampled_from([(), (1,), (2,), (3,), (5, 4), (22,)]),
)
def test_a_row_has_the_numbers_of_the_whole_batch_in_any_order_and_company(
    rows: list[int], shape: tuple[int, ...]
) -> None:
    whole = generator(3, "p", 1, 2).random((5001, *shape))
    found = RowDraws(3, 1, 2, np.array(rows)).uniform("p", (len(rows), *shape))
    np.testing.assert_array_equal(found, whole[rows])


def test_the_last_row_of_a_huge_batch_is_drawn_at_once() -> None:
    rows = np.array([10**12, 10**12 + 1])
    both = RowDraws(0, 0, 0, rows).uniform("p", (2, 3))
    np.testing.assert_array_equal(RowDraws(0, 0, 0, rows[1:]).uniform("p", (1, 3)), both[1:])
    assert len(set(both.ravel().tolist())) == 6


def test_draws_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="p: 3 rows requested, expected 2"):
        RowDraws(0, 0, 0, np.arange(2)).uniform("p", (3, 4))
