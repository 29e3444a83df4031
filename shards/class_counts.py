"""Samples per class, and the long-tail rules built on them: weights, shot groups and the subsets of the papers."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]
# A row of class indices in, the chosen ones out, in the order of the choice.
_Choose = Callable[[Int64Array, int], Int64Array]


def samples_per_class(labels: ArrayLike, num_classes: int) -> Int64Array:
    """Counts the labels: int (N,) in [0, num_classes) -> int64 (num_classes,); a class may have none."""
    array = np.asarray(labels, dtype=np.int64)
    if array.size and (array.min() < 0 or array.max() >= num_classes):
        position = int(np.flatnonzero((array < 0) | (array >= num_classes))[0])
        raise ValueError(f"sample {position} has label {array[position]}, expected 0 to {num_classes - 1}")
    return np.bincount(array, minlength=num_classes).astype(np.int64)


def imbalance_ratio(counts: ArrayLike) -> float:
    """Largest class over smallest class, max n_k / min n_k; every class must have a sample."""
    array = _positive(counts)
    return float(array.max() / array.min())


def power_law_weights(counts: ArrayLike, exponent: float) -> Float64Array:
    """Class weights v_k = n_k^(−exponent) / Σ_j n_j^(−exponent) · C, float64 (C,), mean 1.

    Given to every *sample* of class k, v_k makes a weighted sampler draw class k with probability ∝ n_k^(1 − exponent):
    0 is instance-balanced, 1 is uniform over the classes. It is q(r, k) of Park et al. (CVPR 2022) with r = exponent as
    their code reads it; reading r as the exponent of the *class* probability is one step steeper (exponent = r + 1).
    """
    array = _positive(counts).astype(np.float64)
    # Relative to the largest class, so that a steep exponent cannot underflow every weight to 0.
    return _mean_one((array / array.max()) ** -exponent)


def effective_number_weights(counts: ArrayLike, beta: float) -> Float64Array:
    """Class weights ∝ (1 − β) / (1 − β^n_k), float64 (C,), mean 1 (Cui et al., CVPR 2019, eq. 2 and section 4).

    β in [0, 1); β = 0 gives all ones, the "off" state of deferred re-weighting.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}, expected a value in [0, 1); the papers use 0.9999")
    if beta == 0:
        return np.ones(_positive(counts).size)
    # 1 − β^n, without the cancellation that the plain difference suffers when β is close to 1.
    return _mean_one(-1 / np.expm1(_positive(counts) * np.log(beta)))


@dataclass(frozen=True)
class GroupRule:
    """Borders of the shot groups: many has at least `many_min` training samples, few at most `few_max`."""

    many_min: int
    few_max: int

    def __post_init__(self) -> None:
        if not 0 <= self.few_max < self.many_min:
            raise ValueError(f"few_max is {self.few_max}, expected 0 <= few_max < many_min = {self.many_min}")

    def describe(self) -> str:
        """The rule in words, as results quote it: "many n >= 101, medium 20 <= n <= 100, few n <= 19"."""
        medium = f"medium {self.few_max + 1} <= n <= {self.many_min - 1}"
        return f"many n >= {self.many_min}, {medium}, few n <= {self.few_max}"


# Three borders are in use. They give different groups on CIFAR-100-LT (ratio 100): one class has exactly 20 images.
CMO_RULE = GroupRule(many_min=101, few_max=19)  # CMO on CIFAR and in its evaluation script, MetaSAug
SHIFTED_RULE = GroupRule(many_min=101, few_max=20)  # CMO's ImageNet-LT and iNaturalist trainers, GLMC
# NCL's report; it pools the images of a group, which equals the mean over its classes on balanced test sets.
NCL_RULE = GroupRule(many_min=100, few_max=20)


def shot_groups(counts: ArrayLike, rule: GroupRule) -> dict[str, Int64Array]:
    """Class ids of "many", "medium" and "few" as ascending int64 arrays; a group may be empty.

    The counts (C,) are those of the *training* set, whichever set is evaluated.
    """
    array = np.asarray(counts)
    many, few = array >= rule.many_min, array <= rule.few_max
    masks = {"many": many, "medium": ~(many | few), "few": few}
    return {group: np.flatnonzero(mask).astype(np.int64) for group, mask in masks.items()}


def long_tailed_counts(
    max_count: int, num_classes: int, imb_factor: float, kind: Literal["exp", "step"] = "exp"
) -> Int64Array:
    """Class sizes of a synthetic long tail, int64 (num_classes,), largest first (Cao et al., NeurIPS 2019).

    `imb_factor` = smallest / largest, in (0, 1]. "exp": n_k = int(max_count · imb_factor^(k / (C − 1))), truncated in
    double precision as in the papers' code. "step": max_count for the first half of the classes, then
    int(max_count · imb_factor).
    """
    if num_classes < 2:
        raise ValueError(f"a long tail needs at least 2 classes, found {num_classes}")
    if not 0 < imb_factor <= 1:
        raise ValueError(f"imb_factor is {imb_factor}, expected smallest / largest class in (0, 1], such as 0.01")
    if kind == "exp":
        exponents = [k / (num_classes - 1) for k in range(num_classes)]
    elif kind == "step":
        exponents = [0.0 if k < num_classes // 2 else 1.0 for k in range(num_classes)]
    else:
        raise ValueError(f"kind is {kind!r}, expected 'exp' or 'step'")
    # Python's own power: numpy's vectorised one may differ in the last bit, and truncation would turn it into an image.
    counts = np.array([int(max_count * imb_factor**exponent) for exponent in exponents], dtype=np.int64)
    if counts[-1] < 1:
        raise ValueError(
            f"the smallest class would be empty: {max_count} samples in the largest class x imb_factor {imb_factor} "
            f"is less than 1; use an imb_factor of at least {1 / max_count:.2g}"
            if max_count > 0
            else "the largest class is empty"
        )
    return counts


def cmo_subset(labels: ArrayLike, counts: ArrayLike, seed: int = 0) -> Int64Array:
    """Sample indices of the long-tailed subset of CMO and LDAM-DRW, class after class, int64 (Σ counts,).

    numpy's legacy generator, seeded once; for each class its ascending indices are shuffled, the first counts[k] kept.
    """
    rng = np.random.RandomState(seed)

    def shuffle_and_cut(members: Int64Array, count: int) -> Int64Array:
        rng.shuffle(members)
        return members[:count]

    return _choose_per_class(np.asarray(labels), counts, shuffle_and_cut)


def glmc_subset(labels: ArrayLike, counts: ArrayLike, seed: int = 3407) -> Int64Array:
    """Sample indices of GLMC's long-tailed subset (Du et al., CVPR 2023), class after class, int64 (Σ counts,).

    numpy's legacy generator, seeded once; for each class counts[k] positions are chosen without replacement.
    """
    rng = np.random.RandomState(seed)

    def choose(members: Int64Array, count: int) -> Int64Array:
        return members[rng.choice(members.size, count, replace=False)]

    return _choose_per_class(np.asarray(labels), counts, choose)


def metasaug_split(labels: ArrayLike, counts: ArrayLike, meta_per_class: int = 10) -> tuple[Int64Array, Int64Array]:
    """Training and meta sample indices of MetaSAug (Li et al., CVPR 2021), int64 (Σ counts,) and (C · meta_per_class,).

    The balanced meta set is taken out first (numpy's legacy generator, seed 6), then the long tail is cut from what
    remains (Python's generator, seed 42). So the largest class of CIFAR has 4990 or 490 samples, not 5000 or 500.
    """
    array = np.asarray(labels)
    meta = cmo_subset(array, np.full(np.asarray(counts).size, meta_per_class), seed=6)
    rng = random.Random(42)

    def shuffle_and_cut(members: Int64Array, count: int) -> Int64Array:
        shuffled = members.tolist()
        rng.shuffle(shuffled)
        return np.array(shuffled[:count], dtype=np.int64)

    remaining = np.delete(np.arange(array.size), meta)
    return remaining[_choose_per_class(array[remaining], counts, shuffle_and_cut)], meta


def _choose_per_class(labels: NDArray[Any], counts: ArrayLike, choose: _Choose) -> Int64Array:
    """Runs `choose` on the ascending indices of each class in turn, after checking that no class is too small."""
    wanted = np.asarray(counts, dtype=np.int64)
    available = samples_per_class(labels, wanted.size)
    short = np.flatnonzero(available < wanted)
    if short.size:
        first = int(short[0])
        raise ValueError(
            f"{short.size} classes have fewer samples than their share, the first is class {first} with "
            f"{available[first]} of {wanted[first]}; use a larger imb_factor or a smaller largest class"
        )
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(available)[:-1])
    chosen = [choose(indices, int(count)) for indices, count in zip(members, wanted, strict=True)]
    return np.concatenate(chosen).astype(np.int64)


def _positive(counts: ArrayLike) -> Int64Array:
    array = np.asarray(counts, dtype=np.int64)
    empty = np.flatnonzero(array <= 0)
    if empty.size or not array.size:
        found = (
            f"{empty.size} classes have no sample, the first is class {empty[0]}" if array.size else "there is no class"
        )
        raise ValueError(f"{found}; every class needs at least one training sample")
    return array


def _mean_one(weights: Float64Array) -> Float64Array:
    return weights / weights.mean()
