from typing import Any

import numpy as np
import pytest

from pipeline import sampling
from pipeline.rng import RowDraws
from pipeline.sampling import (
    ClassWeighted,
    ClassWeightedEffectiveNumber,
    KeyedPermutation,
    ProgressivelyBalanced,
    Shuffled,
)
from shards.class_counts import effective_number_weights
from tests.helpers.shard_sets import UnreadableSet

COUNTS = (500, 100, 20, 5)


def ids(sampler: Any, epoch: int, step: int, slots: Any, purpose: str = "s") -> np.ndarray:
    """Of the slots of an epoch, which are a whole batch."""
    return sampler.ids(RowDraws(0, epoch, step, np.arange(len(slots))), purpose, slots.start)


def draws(rule: Any, dataset: Any, number: int, batch: int = 1000) -> np.ndarray:
    sampler = rule.over(dataset)
    return np.concatenate(
        [ids(sampler, 0, step, range(step * batch, (step + 1) * batch)) for step in range(number // batch)]
    )


def chi_square_per_degree(observed: Any, probabilities: Any) -> float:
    expected = observed.sum() * probabilities
    return ((observed - expected) ** 2 / expected).sum() / (len(probabilities) - 1)


@pytest.mark.parametrize("largest_array", [2**24, 0], ids=["array", "bijection"])
def test_shuffled_shows_each_sample_once_an_epoch_in_a_new_order(
    monkeypatch: pytest.MonkeyPatch, largest_array: int
) -> None:
    monkeypatch.setattr(sampling, "_LARGEST_EPOCH_ARRAY", largest_array)
    sampler = Shuffled().over(UnreadableSet(COUNTS))
    slots = [range(start, min(start + 100, 625)) for start in range(0, 625, 100)]
    epochs = [
        np.concatenate([ids(sampler, epoch, step, each) for step, each in enumerate(slots)]) for epoch in range(3)
    ]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(625))
        assert order.dtype == np.int64
    # Two independent orders agree at about one position.
    assert (epochs[0] == epochs[1]).sum() < 10
    assert (epochs[1] == epochs[2]).sum() < 10


@pytest.mark.parametrize("largest_array", [2**24, 0], ids=["array", "bijection"])
def test_shuffled_does_not_depend_on_what_was_asked_before(monkeypatch: pytest.MonkeyPatch, largest_array: int) -> None:
    monkeypatch.setattr(sampling, "_LARGEST_EPOCH_ARRAY", largest_array)
    used = Shuffled().over(UnreadableSet(COUNTS))
    for epoch in range(3):
        ids(used, epoch, 0, range(10))
    fresh = Shuffled().over(UnreadableSet(COUNTS))
    np.testing.assert_array_equal(ids(used, 1, 4, range(40, 50)), ids(fresh, 1, 4, range(40, 50)))


def test_shuffled_refuses_to_go_beyond_its_data_set() -> None:
    with pytest.raises(ValueError, match="position 625 of an epoch of 625 samples"):
        ids(Shuffled().over(UnreadableSet(COUNTS)), 0, 0, range(600, 626))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1009, 2**16 + 1])
def test_keyed_permutation_is_a_bijection(size: int) -> None:
    image = KeyedPermutation(size, np.random.default_rng(size))(np.arange(size, dtype=np.int64))
    assert sorted(image.tolist()) == list(range(size))


def test_keyed_permutation_spreads_positions_and_neighbours_evenly() -> None:
    size, keys = 12, 6_000
    places, distances = np.zeros((size, size)), np.zeros(size)
    for key in range(keys):
        image = KeyedPermutation(size, np.random.default_rng(key))(np.arange(size, dtype=np.int64))
        places[np.arange(size), image] += 1
        distances[(image[1] - image[0]) % size] += 1
    assert ((places - keys / size) ** 2 / (keys / size)).sum() / (size - 1) ** 2 < 1.4
    assert distances[0] == 0
    assert chi_square_per_degree(distances[1:], np.full(size - 1, 1 / (size - 1))) < 2.2


def test_keyed_permutation_of_a_hundred_million_stays_in_range_without_repeats() -> None:
    size = 10**8
    permutation = KeyedPermutation(size, np.random.default_rng(0))
    image = permutation(np.arange(size - 50_000, size, dtype=np.int64))
    assert image.min() >= 0
    assert image.max() < size
    assert len(set(image.tolist())) == 50_000
    # Neighbours land anywhere: the mean of 50,000 uniform values has a spread of 0.0013 of the range.
    assert abs(image.mean() / size - 0.5) < 0.006


@pytest.mark.parametrize(
    ("exponent", "probabilities"),
    [
        (0.0, (0.8, 0.16, 0.032, 0.008)),
        # Published with CMO's code for n = (500, 100, 20, 5).
        (0.5, (0.57233987, 0.25595817, 0.11446797, 0.05723399)),
        (1.0, (0.25, 0.25, 0.25, 0.25)),
        (2.0, (0.00763359, 0.03816794, 0.19083969, 0.76335878)),
    ],
)
def test_the_exponent_weighs_samples_not_classes(exponent: float, probabilities: tuple[float, ...]) -> None:
    dataset = UnreadableSet(COUNTS)
    labels = dataset.index["label"][draws(ClassWeighted(exponent), dataset, 200_000)]
    assert chi_square_per_degree(np.bincount(labels, minlength=4), np.array(probabilities)) < 4


def test_effective_number_sampling_weighs_samples_by_the_effective_number() -> None:
    dataset = UnreadableSet((500, 100, 20, 5))
    weights = effective_number_weights(COUNTS, 0.99) * COUNTS
    labels = dataset.index["label"][draws(ClassWeightedEffectiveNumber(0.99), dataset, 200_000)]
    assert chi_square_per_degree(np.bincount(labels, minlength=4), weights / weights.sum()) < 4


def test_progressive_sampling_goes_from_samples_to_classes_as_in_the_official_code() -> None:
    """Vector V7 of NCL, whose epochs count from one: epochs 100 and 400 of 400."""
    sampler = ProgressivelyBalanced(400).over(UnreadableSet(COUNTS))
    np.testing.assert_allclose(sampler.class_probabilities(99), [0.6625, 0.1825, 0.0865, 0.0685], rtol=1e-12)
    np.testing.assert_allclose(sampler.class_probabilities(399), np.full(4, 0.25), rtol=1e-12)


def test_all_samples_of_a_class_are_drawn_alike() -> None:
    dataset = UnreadableSet(COUNTS)
    drawn = draws(ClassWeighted(), dataset, 200_000)
    members = np.flatnonzero(dataset.index["label"] == 1)
    observed = np.bincount(drawn, minlength=625)[members]
    assert chi_square_per_degree(observed, np.full(100, 0.01)) < 1.7


@pytest.mark.parametrize("rule", [ClassWeighted(1.0), ClassWeighted(2.0), ClassWeightedEffectiveNumber(0.999)])
def test_empty_classes_are_never_drawn(rule: ClassWeighted | ClassWeightedEffectiveNumber) -> None:
    dataset = UnreadableSet((0, 30, 0, 3, 0))
    labels = dataset.index["label"][draws(rule, dataset, 20_000)]
    assert set(labels.tolist()) == {1, 3}


def test_beta_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), found 1"):
        ClassWeightedEffectiveNumber(1.0)


@pytest.mark.parametrize("masses", [[1.0], [1, 1], [0, 3, 0, 0, 1, 0], [1e-12] * 1000 + [1.0], [1.0, *[1e-9] * 500]])
def test_intervals_are_found_as_by_searching(masses: list[float]) -> None:
    ends = np.cumsum(masses) / np.sum(masses)
    ends /= ends[-1]
    near = np.concatenate([np.nextafter(ends, 0), ends, np.nextafter(ends, 1)])
    numbers = np.concatenate([[0.0, np.nextafter(1, 0)], near[near < 1], np.random.default_rng(0).random(5000)])
    found = sampling._Intervals(ends)(numbers)
    assert np.array_equal(found, np.searchsorted(ends, numbers, side="right"))
    assert (np.array(masses)[found] > 0).all()
