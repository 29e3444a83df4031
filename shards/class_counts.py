"""Samples per class, and the long-tail rules built on them: weights and shot groups."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]


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

    If every *sample* of class k has weight v_k, a weighted sampler draws class k with probability ∝ n_k^(1 − exponent):
    0 is instance-balanced, 1 is uniform over the classes. It is q(r, k) of Park et al. (CVPR 2022) with r = exponent,
    as in their code; interpreting r as the exponent of the *class* probability is one step steeper (exponent = r + 1).
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
    # 1 − β^n, without the cancellation of the plain difference when β is close to 1.
    return _mean_one(-1 / np.expm1(_positive(counts) * np.log(beta)))


@dataclass(frozen=True)
class GroupRule:
    """Limits of the shot groups: many has at least `many_min` training samples, few at most `few_max`."""

    many_min: int
    few_max: int

    def __post_init__(self) -> None:
        if not 0 <= self.few_max < self.many_min:
            raise ValueError(f"few_max is {self.few_max}, expected 0 <= few_max < many_min = {self.many_min}")

    def describe(self) -> str:
        """The rule in words, as quoted in results: "many n >= 101, medium 20 <= n <= 100, few n <= 19"."""
        medium = f"medium {self.few_max + 1} <= n <= {self.many_min - 1}"
        return f"many n >= {self.many_min}, {medium}, few n <= {self.few_max}"


# Three rules are in use. They give different groups on CIFAR-100-LT (ratio 100): one class has exactly 20 images.
CMO_RULE = GroupRule(many_min=101, few_max=19)  # CMO on CIFAR and in its evaluation script, MetaSAug
SHIFTED_RULE = GroupRule(many_min=101, few_max=20)  # CMO's ImageNet-LT and iNaturalist trainers, GLMC
# NCL's reporting; it pools a group's images, which equals the mean over its classes on balanced test sets.
NCL_RULE = GroupRule(many_min=100, few_max=20)


def shot_groups(counts: ArrayLike, rule: GroupRule) -> dict[str, Int64Array]:
    """Class ids of "many", "medium" and "few" as ascending int64 arrays; a group may be empty.

    The counts (C,) are those of the *training* set, no matter which set is evaluated.
    """
    array = np.asarray(counts)
    many, few = array >= rule.many_min, array <= rule.few_max
    masks = {"many": many, "medium": ~(many | few), "few": few}
    return {group: np.flatnonzero(mask).astype(np.int64) for group, mask in masks.items()}


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
