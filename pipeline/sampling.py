"""Which samples a stream uses at each step: a permutation per epoch, or class-weighted draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.rng import RowDraws, generator

# Up to this size a permutation is an array; above it, a keyed bijection that needs no memory. An epoch's array is made
# once and kept (16 MB); a step's array has to be made at every step.
_LARGEST_EPOCH_ARRAY = 2**22
_LARGEST_STEP_ARRAY = 2**12
# With six rounds, neighbours are visibly correlated in sets of a dozen samples; with eight they are not (see tests).
_FEISTEL_ROUNDS = 8
_STEPS_UPWARDS = 8  # afterwards the few remaining numbers, among many tiny classes, are found by binary search


class SampledDataset(Protocol):
    """What sampling needs to know about a data set; `shards.reader.ShardSet` provides it."""

    samples_per_class: npt.NDArray[np.int64]
    sample_ids_by_class: np.ndarray
    class_starts: npt.NDArray[np.int64]

    def __len__(self) -> int: ...


class Sampler(Protocol):
    """A sampling rule bound to one data set."""

    def ids(self, draws: RowDraws, purpose: str, start: int) -> npt.NDArray[np.int64]:
        """Sample ids, int64, for the rows of `draws`, in the batch that starts at `start` in the epoch.

        A row's sample does not depend on the other rows requested.
        """

    def classes(self, draws: RowDraws, purpose: str) -> npt.NDArray[np.int64] | None:
        """Labels of these samples, int64, if the rule draws classes first and then members; otherwise None."""


class Sampling(Protocol):
    """A rule for the order of samples; a frozen dataclass, so it can be printed and compared."""

    def over(self, dataset: SampledDataset) -> Sampler:
        """Bind the rule to a data set: all work that depends only on the data set is done here, once."""


@dataclass(frozen=True)
class Shuffled:
    """Every sample once per epoch, in a new global order each epoch."""

    def over(self, dataset: SampledDataset) -> Sampler:
        return _ShuffledSampler(len(dataset))


@dataclass(frozen=True)
class Redrawn:
    """Every step draws a new batch from the whole set; no sample repeats within a batch that the set can fill.

    The balanced meta stream of MetaSAug (Li et al., CVPR 2021). A larger batch repeats the set as evenly as possible.

    Attributes:
        per_class: draw only from this many samples of each class, the same ones throughout the run, or from all of a
            class's samples if it has fewer; None draws from the whole set. They are chosen by the rule of the official
            code, numpy's legacy generator with seed 6, but on the order of the shard set instead of the original
            list: a build shuffles, so the set does not know the list's order, and any fixed order will do.
    """

    per_class: int | None = None

    def __post_init__(self) -> None:
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"redrawn sampling: per_class must be at least 1, found {self.per_class}")

    def over(self, dataset: SampledDataset) -> Sampler:
        members = dataset.sample_ids_by_class
        if self.per_class is None:
            return _RedrawnSampler(members)
        rng = np.random.RandomState(6)
        classes = np.split(members, dataset.class_starts[1:-1])
        return _RedrawnSampler(np.concatenate([rng.permutation(ids)[: self.per_class] for ids in classes]))


@dataclass(frozen=True)
class ClassWeighted:
    """Independent draws with replacement; a sample of class k has weight n_k^(−exponent).

    The exponent applies to the *sample*, so a *class* is drawn with probability ∝ n_k^(1−exponent): 0 draws all samples
    with equal probability, 0.5 classes ∝ √n_k, 1 all classes with equal probability, 2 classes ∝ 1/n_k. The equation
    of CMO (Park et al., CVPR 2022), q(r, k) ∝ n_k^(−r), looks like a distribution over classes, but the published
    numbers come from code in which it is the weight of a sample. Exponent 1 here reproduces them; drawing classes
    ∝ 1/n_k (the literal reading of r = 1) is exponent 2 and costs several points.
    """

    exponent: float = 1.0

    def over(self, dataset: SampledDataset) -> Sampler:
        counts = np.asarray(dataset.samples_per_class, dtype=np.float64)
        # 0 ** negative would be inf: an empty class has no sample to draw.
        mass = np.power(counts, 1.0 - self.exponent, where=counts > 0, out=np.zeros_like(counts))
        return ClassDraws(dataset, mass)


@dataclass(frozen=True)
class ClassWeightedEffectiveNumber:
    """Independent draws with replacement; a sample of class k has weight (1−β)/(1−β^n_k).

    The effective-number weights of Cui et al., CVPR 2019, used as sampling weights: E(k) in the ablation of CMO.
    With β = 0.9999 and small classes it is close to uniform over the classes.
    """

    beta: float = 0.9999

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(f"effective-number sampling: beta must be in [0, 1), found {self.beta}")

    def over(self, dataset: SampledDataset) -> Sampler:
        counts = np.asarray(dataset.samples_per_class, dtype=np.float64)
        effective = 1.0 - np.power(self.beta, counts)
        mass = np.divide(counts, effective, where=counts > 0, out=np.zeros_like(counts))
        return ClassDraws(dataset, mass)


@dataclass(frozen=True)
class ProgressivelyBalanced:
    """Independent draws with replacement, from nearly instance-balanced at first to class-balanced in the last epoch.

    In the e-th of E epochs, counted from one, class k is drawn with probability (e/E)/C + (1 − e/E) n_k/N (Kang et al.,
    ICLR 2020). The NCL code has it as an option that none of its settings uses.
    """

    epochs: int

    def over(self, dataset: SampledDataset) -> Sampler:
        return _ProgressiveSampler(dataset, self.epochs)


class _ShuffledSampler:
    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._kept: tuple[tuple[int, str, int], _Order] | None = None

    def ids(self, draws: RowDraws, purpose: str, start: int) -> npt.NDArray[np.int64]:
        slots = start + draws.rows
        if slots.max() >= self._samples:
            raise ValueError(
                f"{purpose}: step {draws.step} asks for position {slots.max()} of an epoch of {self._samples} samples; "
                "a shuffled stream cannot be longer than its data set: use a class-weighted stream instead"
            )
        # The order of an epoch is the same at each of its steps, hence step 0; only the current epoch's is kept. Two
        # threads may call this: the tuple is read and replaced atomically.
        key, kept = (draws.seed, purpose, draws.epoch), self._kept
        if kept is None or kept[0] != key:
            order = _order(self._samples, generator(*key, 0), _LARGEST_EPOCH_ARRAY)
            self._kept = kept = key, order
        return kept[1](slots)

    def classes(self, draws: RowDraws, purpose: str) -> None:
        return None


class _RedrawnSampler:
    def __init__(self, members: np.ndarray) -> None:
        self._members = members

    def ids(self, draws: RowDraws, purpose: str, start: int) -> npt.NDArray[np.int64]:
        rng = generator(draws.seed, purpose, draws.epoch, draws.step)
        order = _order(len(self._members), rng, _LARGEST_STEP_ARRAY)
        return self._members[order(draws.rows % len(self._members))].astype(np.int64)

    def classes(self, draws: RowDraws, purpose: str) -> None:
        return None


_Order = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]


def _order(size: int, rng: np.random.Generator, largest_array: int) -> _Order:
    """A permutation of [0, size), applied to positions; int64 (n,) in and out."""
    if size > largest_array:
        return KeyedPermutation(size, rng)
    order = rng.permutation(np.arange(size, dtype=np.uint32))
    return lambda positions: order[positions].astype(np.int64)


class KeyedPermutation:
    """A pseudo-random bijection of [0, size) that is computed, not stored.

    A Feistel network over Z_a × Z_b with a·b just above `size`: each round adds a keyed hash of one half to the
    other, which is invertible for any hash. A value that lands in [size, a·b) goes through again (cycle walking); the
    result is still a bijection, and this happens to fewer than one draw in √size.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._size = np.uint64(size)
        left = int(np.ceil(np.sqrt(size)))
        self._left = np.uint64(left)
        self._right = np.uint64(-(-size // left))
        self._keys = rng.integers(0, 2**64, size=_FEISTEL_ROUNDS, dtype=np.uint64)

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The permuted `positions`; int64 (n,) in [0, size), in and out."""
        values = self._permute(positions.astype(np.uint64))
        while (outside := np.flatnonzero(values >= self._size)).size:
            values[outside] = self._permute(values[outside])
        return values.astype(np.int64)

    def _permute(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = np.divmod(values, self._right)
        for round_index, key in enumerate(self._keys):
            if round_index % 2:
                left = (left + _hash(right ^ key)) % self._left
            else:
                right = (right + _hash(left ^ key)) % self._right
        return left * self._right + right


def _hash(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The 64-bit finaliser of MurmurHash3; the top bit is cleared so that adding a small number cannot overflow."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return (values ^ (values >> np.uint64(33))) >> np.uint64(1)


class ClassDraws:
    """Draw a class by its probability, then one of its samples uniformly: O(log C) per draw for any set size.

    Args:
        class_mass: float64 (classes,), proportional to the probabilities.
    """

    def __init__(self, dataset: SampledDataset, class_mass: npt.NDArray[np.float64]) -> None:
        self._dataset = dataset
        cumulative = np.cumsum(class_mass / class_mass.sum())
        # The sum may differ from 1 by a rounding error. Dividing by the last value makes it exactly 1 starting at the
        # last class with any mass, so a draw u < 1 never falls on an empty class at the end.
        self._class_of = _Intervals(cumulative / cumulative[-1])

    def classes(self, draws: RowDraws, purpose: str) -> npt.NDArray[np.int64]:
        return self._class_of(draws.uniform(purpose, (len(draws.rows), 2))[:, 0])

    def ids(self, draws: RowDraws, purpose: str, start: int) -> npt.NDArray[np.int64]:
        uniform = draws.uniform(purpose, (len(draws.rows), 2))
        classes = self._class_of(uniform[:, 0])
        return members_of(self._dataset, classes, uniform[:, 1])


def members_of(
    dataset: SampledDataset, classes: npt.NDArray[np.int64], uniform: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """For each number in [0, 1) a sample id of its class, int64 (n,)."""
    # 53 random bits for at most 2^32 members: no member is favoured by more than 2^-21. Faster than integers().
    members = (uniform * dataset.samples_per_class[classes]).astype(np.int64)
    return dataset.sample_ids_by_class[dataset.class_starts[classes] + members].astype(np.int64)


class _Intervals:
    """Finds the interval of a number in [0, 1): `np.searchsorted(ends, numbers, side="right")`, but twenty times faster
    with 10^5 intervals. A table gives a lower bound; a few steps upwards follow.

    Because of side="right" an empty interval, a class with probability 0, is never chosen.
    """

    def __init__(self, ends: npt.NDArray[np.float64]) -> None:
        """ends: float64 (n,), ascending, the last one 1."""
        self._ends = ends
        self._entries = 1 << (len(ends) - 1).bit_length()  # a power of two: multiplying by it does not round
        starts = np.arange(self._entries) / self._entries
        self._first = np.searchsorted(ends, starts, side="right")

    def __call__(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """float64 (n,) → int64 (n,)."""
        found = self._first[(numbers * self._entries).astype(np.int64)]
        below = np.flatnonzero(self._ends[found] <= numbers)
        for _ in range(_STEPS_UPWARDS):
            if not below.size:
                return found
            found[below] += 1
            below = below[self._ends[found[below]] <= numbers[below]]
        found[below] = np.searchsorted(self._ends, numbers[below], side="right")
        return found


class _ProgressiveSampler:
    def __init__(self, dataset: SampledDataset, epochs: int) -> None:
        self._dataset = dataset
        self._epochs = epochs
        counts = np.asarray(dataset.samples_per_class, dtype=np.float64)
        self._by_sample = counts / counts.sum()
        self._by_class = (counts > 0) / np.count_nonzero(counts)
        self._kept: tuple[int, ClassDraws] | None = None

    def class_probabilities(self, epoch: int) -> npt.NDArray[np.float64]:
        """The probabilities in an epoch (from 0), float64 (classes,)."""
        done = (epoch + 1) / self._epochs
        return done * self._by_class + (1 - done) * self._by_sample

    def ids(self, draws: RowDraws, purpose: str, start: int) -> npt.NDArray[np.int64]:
        return self._of(draws.epoch).ids(draws, purpose, start)

    def classes(self, draws: RowDraws, purpose: str) -> npt.NDArray[np.int64]:
        return self._of(draws.epoch).classes(draws, purpose)

    def _of(self, epoch: int) -> ClassDraws:
        kept = self._kept
        if kept is None or kept[0] != epoch:
            sampler = ClassDraws(self._dataset, self.class_probabilities(epoch))
            self._kept = kept = epoch, sampler
        return kept[1]
