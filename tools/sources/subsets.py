"""The papers' rules for long-tailed subsets of balanced data sets: class sizes, and image choices by seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.class_counts import Int64Array, samples_per_class
from shards.commandline import UsageError

# Takes an array of class indices, returns the chosen ones in the order of choice.
_Choose = Callable[[Int64Array, int], Int64Array]


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
        raise UsageError(f"imb_factor is {imb_factor}, expected smallest / largest class in (0, 1], such as 0.01")
    if kind == "exp":
        exponents = [k / (num_classes - 1) for k in range(num_classes)]
    elif kind == "step":
        exponents = [0.0 if k < num_classes // 2 else 1.0 for k in range(num_classes)]
    else:
        raise ValueError(f"kind is {kind!r}, expected 'exp' or 'step'")
    # Python's own power: numpy's vectorised one may differ in the last bit, and truncation makes that an image.
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
    """Sample indices of the long-tailed subset of CMO and LDAM-DRW, class by class, int64 (Σ counts,).

    numpy's legacy generator, seeded once; for each class, shuffle its ascending indices and keep the first counts[k].
    """
    rng = np.random.RandomState(seed)

    def shuffle_and_cut(members: Int64Array, count: int) -> Int64Array:
        rng.shuffle(members)
        return members[:count]

    return _choose_per_class(np.asarray(labels), counts, shuffle_and_cut)


def glmc_subset(labels: ArrayLike, counts: ArrayLike, seed: int = 3407) -> Int64Array:
    """Sample indices of GLMC's long-tailed subset (Du et al., CVPR 2023), class by class, int64 (Σ counts,).

    numpy's legacy generator, seeded once; for each class, choose counts[k] positions without replacement.
    """
    rng = np.random.RandomState(seed)

    def choose(members: Int64Array, count: int) -> Int64Array:
        return members[rng.choice(members.size, count, replace=False)]

    return _choose_per_class(np.asarray(labels), counts, choose)


def metasaug_split(labels: ArrayLike, counts: ArrayLike, meta_per_class: int = 10) -> tuple[Int64Array, Int64Array]:
    """Training and meta sample indices of MetaSAug (Li et al., CVPR 2021), int64 (Σ counts,) and (C · meta_per_class,).

    The balanced meta set is removed first (numpy's legacy generator, seed 6), then the long tail is cut from the rest
    (Python's generator, seed 42). So CIFAR's largest class has 4990 or 490 samples, not 5000 or 500.
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
