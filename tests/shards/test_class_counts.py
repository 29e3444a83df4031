"""Class counts, weights, groups and subsets against the published vectors and slow references."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.class_counts import (
    CMO_RULE,
    NCL_RULE,
    SHIFTED_RULE,
    GroupRule,
    effective_number_weights,
    imbalance_ratio,
    power_law_weights,
    samples_per_class,
    shot_groups,
)
from tools.sources.subsets import cmo_subset, glmc_subset, long_tailed_counts, metasaug_split

EXAMPLE = [500, 100, 20, 5]
CIFAR10_RATIO_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
CYCLIC_LABELS = np.arange(50_000) % 10

counts_lists = st.lists(st.integers(1, 100_000), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("max_count", "num_classes", "imb_factor", "expected"),
    [
        (5000, 10, 0.01, CIFAR10_RATIO_100),
        (5000, 10, 0.1, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        (5000, 10, 0.02, [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]),
        (4990, 10, 0.005, [4990, 2769, 1537, 853, 473, 262, 145, 80, 44, 24]),
        (500, 100, 0.01, [500, 477, 455, 434, 415, ..., 6, 5, 5, 5, 5]),
        (490, 100, 0.01, [490, 467, 446, 426, 406, ..., 5, 5, 5, 5, 4]),
    ],
)
def test_exponential_counts_equal_the_published_ones(
    max_count: int, num_classes: int, imb_factor: float, expected: Any
) -> None:
    counts = long_tailed_counts(max_count, num_classes, imb_factor).tolist()
    head = expected.index(...) if ... in expected else len(expected)
    assert counts[:head] == expected[:head]
    assert counts[len(counts) - len(expected[head + 1 :]) :] == expected[head + 1 :]
    assert len(counts) == num_classes


@pytest.mark.parametrize(
    ("max_count", "num_classes", "totals"),
    [
        (500, 100, {0.01: 10_847, 0.02: 12_608, 0.1: 19_573}),
        (5000, 10, {0.01: 12_406, 0.02: 13_996, 0.1: 20_431}),
        (490, 100, {0.005: 9_304, 0.01: 10_626, 0.02: 12_354, 0.05: 15_594, 0.1: 19_183}),
        (4990, 10, {0.005: 11_177, 0.01: 12_380, 0.02: 13_967, 0.05: 16_989, 0.1: 20_391}),
    ],
)
def test_exponential_totals_equal_the_published_ones(max_count: int, num_classes: int, totals: dict[str, Any]) -> None:
    assert {factor: int(long_tailed_counts(max_count, num_classes, factor).sum()) for factor in totals} == totals


def test_step_counts_halve_the_classes_and_an_odd_class_joins_the_tail() -> None:
    assert long_tailed_counts(500, 4, 0.1, "step").tolist() == [500, 500, 50, 50]
    assert long_tailed_counts(500, 5, 0.1, "step").tolist() == [500, 500, 50, 50, 50]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((500, 1, 0.1), "at least 2 classes"),
        ((500, 10, 0.0), "imb_factor is 0.0"),
        ((500, 10, 100), "imb_factor is 100"),
        ((500, 10, 0.1, "linear"), "'linear'"),
        ((50, 10, 0.01), "would be empty.*at least 0.02"),
        ((0, 10, 0.01), "largest class is empty"),
    ],
)
def test_impossible_tails_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        long_tailed_counts(*arguments)


def test_samples_per_class_counts_absent_classes_and_names_a_bad_label() -> None:
    assert samples_per_class([2, 0, 2], 4).tolist() == [1, 0, 2, 0]
    assert samples_per_class([], 2).tolist() == [0, 0]
    for bad in ([0, 1, 7], [0, 1, -1]):
        with pytest.raises(ValueError, match=f"sample 2 has label {bad[2]}, expected 0 to 3"):
            samples_per_class(bad, 4)


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [
        (1.0, [0.03053435, 0.15267176, 0.76335878, 3.05343511]),
        (0.5, [0.21934553, 0.49047152, 1.09672765, 2.19345530]),
        (2.0, [0.00037555, 0.00938879, 0.23471974, 3.75551591]),
        (1.2, [0.013042969, 0.089978856, 0.62073248, 3.2762457]),
        (0.2, [0.5886448, 0.8121706, 1.120576, 1.478609]),
        (0.0, [1, 1, 1, 1]),
    ],
)
def test_power_law_weights_equal_the_published_ones(exponent: float, expected: list[float] | list[int]) -> None:
    np.testing.assert_allclose(power_law_weights(EXAMPLE, exponent), expected, atol=5e-9, rtol=3e-7)


@given(counts_lists, st.floats(0, 3))
def test_power_law_weights_draw_classes_by_n_to_one_minus_exponent(counts: Sequence[int], exponent: float) -> None:
    weights = power_law_weights(counts, exponent)
    n = np.array(counts, dtype=np.float64)
    drawn = n * weights / (n * weights).sum()
    np.testing.assert_allclose(drawn, n ** (1 - exponent) / (n ** (1 - exponent)).sum(), rtol=1e-9)
    assert weights.mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (EXAMPLE, [0.03128017, 0.15331908, 0.76353803, 3.05186273]),
        (
            CIFAR10_RATIO_100,
            [
                *[0.05061136, 0.07689979, 0.12113387, 0.19503667, 0.31880537],
                *[0.52458985, 0.86834894, 1.44262727, 2.40922305, 3.99272382],
            ],
        ),
    ],
)
def test_effective_number_weights_equal_the_published_ones(counts: Sequence[int], expected: Any) -> None:
    np.testing.assert_allclose(effective_number_weights(counts, 0.9999), expected, atol=5e-9)


@pytest.mark.parametrize(
    ("weights", "largest", "classes", "ends"),
    [
        (lambda counts: power_law_weights(counts, 1.2), 500, 100, (0.020440627, 5.1344533)),
        (lambda counts: power_law_weights(counts, 1.2), 5000, 10, (0.018274912, 4.5904504)),
        (lambda counts: effective_number_weights(counts, 0.9999), 490, 100, (0.044217287, 5.2871027)),
        (lambda counts: effective_number_weights(counts, 0.9999), 4990, 10, (0.050197954, 4.0344951)),
    ],
    ids=["GLMC, CIFAR-100", "GLMC, CIFAR-10", "MetaSAug, CIFAR-100", "MetaSAug, CIFAR-10"],
)
def test_weights_of_glmc_and_metasaug_have_the_published_ends(
    weights: Any, largest: int, classes: int, ends: tuple[float, ...]
) -> None:
    found = weights(long_tailed_counts(largest, classes, 0.01))
    assert (found[0], found[-1]) == (found.min(), found.max()) == pytest.approx(ends, rel=1e-7)


@given(counts_lists, st.floats(0, 0.999))
def test_effective_number_weights_follow_the_formula(counts: Sequence[int], beta: float) -> None:
    slow = np.array([(1 - beta) / (1 - beta**n) for n in counts])
    np.testing.assert_allclose(effective_number_weights(counts, beta), slow / slow.mean(), rtol=1e-9)


def test_effective_number_weights_between_off_and_inverse_frequency() -> None:
    assert (effective_number_weights(EXAMPLE, 0) == 1).all()
    near_one = effective_number_weights(EXAMPLE, 1 - 1e-14)
    np.testing.assert_allclose(near_one, power_law_weights(EXAMPLE, 1), rtol=1e-9)
    with pytest.raises(ValueError, match=r"beta is 1"):
        effective_number_weights(EXAMPLE, 1)


@pytest.mark.parametrize(
    "rule", [imbalance_ratio, lambda n: power_law_weights(n, 1), lambda n: effective_number_weights(n, 0.0)]
)
def test_an_empty_class_is_named_by_every_rule_that_divides_by_its_count(rule: Any) -> None:
    with pytest.raises(ValueError, match=r"1 classes have no sample, the first is class 1"):
        rule([5, 0, 3])
    with pytest.raises(ValueError, match="there is no class"):
        rule([])


def test_imbalance_ratio() -> None:
    assert imbalance_ratio([5, 1280, 300]) == 256


@pytest.mark.parametrize(
    ("rule", "sizes"), [(CMO_RULE, (35, 35, 30)), (SHIFTED_RULE, (35, 34, 31)), (NCL_RULE, (35, 34, 31))]
)
def test_group_borders_on_cifar100_ratio_100(rule: Any, sizes: tuple[int, ...]) -> None:
    groups = shot_groups(long_tailed_counts(500, 100, 0.01), rule)
    assert tuple(len(groups[name]) for name in ("many", "medium", "few")) == sizes


def test_groups_of_an_unsorted_set_at_each_border() -> None:
    counts = [20, 300, 101, 100, 5]
    as_lists = {
        rule: {name: ids.tolist() for name, ids in shot_groups(counts, rule).items()}
        for rule in (CMO_RULE, SHIFTED_RULE, NCL_RULE)
    }
    assert as_lists[CMO_RULE] == {"many": [1, 2], "medium": [0, 3], "few": [4]}
    assert as_lists[SHIFTED_RULE] == {"many": [1, 2], "medium": [3], "few": [0, 4]}
    assert as_lists[NCL_RULE] == {"many": [1, 2, 3], "medium": [], "few": [0, 4]}


@given(st.lists(st.integers(0, 200), max_size=50), st.integers(0, 50), st.integers(1, 100))
def test_groups_partition_the_classes(counts: Sequence[int], few_max: Any, gap: Any) -> None:
    groups = shot_groups(counts, GroupRule(many_min=few_max + gap, few_max=few_max))
    assert sorted(np.concatenate(list(groups.values())).tolist()) == list(range(len(counts)))


def test_group_rule_is_written_out_and_checked() -> None:
    assert CMO_RULE.describe() == "many n >= 101, medium 20 <= n <= 100, few n <= 19"
    with pytest.raises(ValueError, match="few_max is 30"):
        GroupRule(many_min=20, few_max=30)


def test_cmo_subset_equals_the_published_one() -> None:
    counts = np.array(CIFAR10_RATIO_100)
    subset = cmo_subset(CYCLIC_LABELS, counts)
    starts = np.cumsum(counts) - counts
    assert subset[starts[0] :][:5].tolist() == [3980, 38330, 48360, 45720, 6360]
    assert subset[starts[1] :][:5].tolist() == [5971, 3321, 5211, 39351, 48001]
    assert subset[starts[5] :][:5].tolist() == [41275, 11525, 45955, 45905, 22705]
    assert subset[starts[9] :][:5].tolist() == [22049, 38169, 22069, 25079, 19269]
    assert subset.sum() == 309_550_124
    assert cmo_subset(CYCLIC_LABELS, counts, seed=1).sum() != 309_550_124


def test_glmc_subset_equals_the_published_one() -> None:
    subset = glmc_subset(CYCLIC_LABELS, CIFAR10_RATIO_100)
    position_in_class = subset // 10  # image i has label i mod 10
    assert position_in_class[:5].tolist() == [3855, 4849, 4388, 2008, 3828]
    assert position_in_class[-50:][:5].tolist() == [1252, 1985, 4774, 3599, 4462]


def test_metasaug_split_equals_the_published_one() -> None:
    counts = long_tailed_counts(4990, 10, 0.01)
    train, meta = metasaug_split(CYCLIC_LABELS, counts)
    assert sorted(meta[:10]) == [5290, 5640, 16580, 20490, 21910, 24160, 25410, 36950, 41270, 41340]
    assert sorted(meta[90:]) == [7639, 19399, 20349, 23489, 23599, 30129, 32129, 40399, 41449, 47699]
    assert train[-counts[9] :][:5].tolist() == [44289, 3809, 13779, 43109, 45019]
    assert not set(train) & set(meta)


@pytest.mark.parametrize("subset", [cmo_subset, glmc_subset, lambda *args: metasaug_split(*args, meta_per_class=2)[0]])
def test_subsets_have_the_asked_counts_without_repeats_and_leave_global_generators_alone(subset: Any) -> None:
    labels = np.random.default_rng(0).integers(0, 5, 400)
    wanted = [50, 1, 20, 7, 3]
    before = random.getstate()
    chosen = subset(labels, wanted)
    assert samples_per_class(labels[chosen], 5).tolist() == wanted
    assert len(set(chosen.tolist())) == sum(wanted)
    assert random.getstate() == before


def test_a_class_smaller_than_its_share_is_named() -> None:
    with pytest.raises(ValueError, match=r"2 classes have fewer samples.*class 1 with 2 of 3"):
        cmo_subset([0, 0, 0, 1, 1, 2], [3, 3, 3])
