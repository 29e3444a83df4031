"""Which samples a stream shows at each step: a permutation of an epoch, or class-weighted draws."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.rng import generator

# Up to here an epoch's permutation is an array (64 MB); above it a keyed bijection that needs no memory.
_LARGEST_ARRAY = 2**24
# With six, neighbours are visibly related in sets of a dozen samples; with eight they are not (see the tests).
_FEISTEL_ROUNDS = 8


class SampledDataset(Protocol):
    """What sampling needs to know of a data set; ``shards.reader.ShardSet`` has it."""

    samples_per_class: npt.NDArray[np.int64]
    sample_ids_by_class: np.ndarray
    class_starts: npt.NDArray[np.int64]

    def __len__(self) -> int: ...


class Sampler(Protocol):
    """A sampling rule bound to one data set."""

    def ids(self, seed: int, purpose: str, epoch: int, step: int, slots: range) -> npt.NDArray[np.int64]:
        """Sample ids, int64 (len(slots),), of the positions ``slots`` of the epoch, which are those of this step."""


class Sampling(Protocol):
    """A rule that says which samples come when; a frozen dataclass, so that it can be printed and compared."""

    def over(self, dataset: SampledDataset) -> Sampler:
        """Bind the rule to a data set: all work that depends on the data set alone is done here, once."""


@dataclass(frozen=True)
class Shuffled:
    """Every sample once an epoch, in a new global order each epoch."""

    def over(self, dataset: SampledDataset) -> Sampler:
        return _ShuffledSampler(len(dataset))


@dataclass(frozen=True)
class Redrawn:
    """Every step draws its batch anew from the whole set; no sample comes twice in a batch that the set can fill.

    The balanced meta stream of MetaSAug (Li et al., CVPR 2021). A larger batch repeats the set as evenly as possible.

    Attributes:
        per_class: draw from this many samples of each class only, the same ones in the whole run, or from all that a
            class has if it has fewer; None draws from the whole set. They are chosen by the rule of the official code,
            numpy's legacy generator with seed 6, on the order of the shard set instead of that of the original list:
            a build shuffles, so a set does not know the list's, and the rule needs only some order that stays.
    """

    per_class: int | None = None

    def __post_init__(self) -> None:
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"redrawn sampling: per_class must be at least 1, found {self.per_class}")

    def over(self, dataset: SampledDataset) -> Sampler:
        members = np.asarray(dataset.sample_ids_by_class, dtype=np.int64)
        if self.per_class is None:
            return _RedrawnSampler(members)
        rng = np.random.RandomState(6)
        classes = np.split(members, dataset.class_starts[1:-1])
        return _RedrawnSampler(np.concatenate([rng.permutation(ids)[: self.per_class] for ids in classes]))


@dataclass(frozen=True)
class ClassWeighted:
    """Independent draws with replacement; a sample of class k has weight n_k^(−exponent).

    The exponent belongs to the *sample*, so that a *class* is drawn with probability ∝ n_k^(1−exponent):
    0 draws every sample alike, 0.5 classes ∝ √n_k, 1 all classes alike, 2 classes ∝ 1/n_k. The equation of CMO (Park
    et al., CVPR 2022), q(r, k) ∝ n_k^(−r), reads like a distribution over classes; the published numbers come from
    code where it is the weight of a sample. Exponent 1 here reproduces them; classes drawn ∝ 1/n_k (the literal
    reading of r = 1) are exponent 2 and cost several points.
    """

    exponent: float = 1.0

    def over(self, dataset: SampledDataset) -> Sampler:
        counts = np.asarray(dataset.samples_per_class, dtype=np.float64)
        # 0 ** negative would be inf: an empty class has no sample to draw.
        mass = np.power(counts, 1.0 - self.exponent, where=counts > 0, out=np.zeros_like(counts))
        return _ClassWeightedSampler(dataset, mass)


@dataclass(frozen=True)
class ClassWeightedEffectiveNumber:
    """Independent draws with replacement; a sample of class k has weight (1−β)/(1−β^n_k).

    The effective-number weights of Cui et al., CVPR 2019, used as sampling weights: E(k) in the ablation of CMO.
    With β = 0.9999 and small classes it is close to drawing all classes alike.
    """

    beta: float = 0.9999

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(f"effective-number sampling: beta must be in [0, 1), found {self.beta}")

    def over(self, dataset: SampledDataset) -> Sampler:
        counts = np.asarray(dataset.samples_per_class, dtype=np.float64)
        effective = 1.0 - np.power(self.beta, counts)
        mass = np.divide(counts, effective, where=counts > 0, out=np.zeros_like(counts))
        return _ClassWeightedSampler(dataset, mass)


@dataclass(frozen=True)
class ProgressivelyBalanced:
    """Independent draws with replacement, at first nearly of all samples alike, in the last epoch of all classes alike.

    In the e-th of E epochs, counted from one, class k is drawn with probability (e/E)/C + (1 − e/E) n_k/N (Kang et al.,
    ICLR 2020). The NCL code has it as an option, which none of its settings uses.
    """

    epochs: int

    def over(self, dataset: SampledDataset) -> Sampler:
        return _ProgressiveSampler(dataset, self.epochs)


class _ShuffledSampler:
    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._epoch_key: tuple[int, str, int] | None = None
        self._order: np.ndarray | KeyedPermutation

    def ids(self, seed: int, purpose: str, epoch: int, step: int, slots: range) -> npt.NDArray[np.int64]:
        if slots.stop > self._samples:
            raise ValueError(
                f"{purpose}: step {step} asks for positions up to {slots.stop} of an epoch of {self._samples} samples; "
                "a shuffled stream cannot be longer than its data set: use a class-weighted stream instead"
            )
        # The order of an epoch is the same at each of its steps, hence step 0; only the current epoch's is kept.
        if self._epoch_key != (seed, purpose, epoch):
            rng = generator(seed, purpose, epoch, 0)
            if self._samples <= _LARGEST_ARRAY:
                self._order = rng.permutation(np.arange(self._samples, dtype=np.uint32))
            else:
                self._order = KeyedPermutation(self._samples, rng)
            self._epoch_key = (seed, purpose, epoch)
        if isinstance(self._order, KeyedPermutation):
            return self._order(np.arange(slots.start, slots.stop, dtype=np.uint64))
        return self._order[slots.start : slots.stop].astype(np.int64)


class _RedrawnSampler:
    def __init__(self, members: npt.NDArray[np.int64]) -> None:
        self._members = members

    def ids(self, seed: int, purpose: str, epoch: int, step: int, slots: range) -> npt.NDArray[np.int64]:
        order = generator(seed, purpose, epoch, step).permutation(len(self._members))
        return self._members[np.resize(order, len(slots))]


class KeyedPermutation:
    """A pseudo-random bijection of [0, size) that is computed, not stored.

    A Feistel network over Z_a × Z_b with a·b just above ``size``: each round adds a keyed hash of one half to the
    other, which is invertible whatever the hash. A value that lands in [size, a·b) is sent through again
    (cycle walking), which stays a bijection and concerns fewer than one draw in √size.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._size = np.uint64(size)
        left = int(np.ceil(np.sqrt(size)))
        self._left = np.uint64(left)
        self._right = np.uint64(-(-size // left))
        self._keys = rng.integers(0, 2**64, size=_FEISTEL_ROUNDS, dtype=np.uint64)

    def __call__(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Images of ``positions``, uint64 (n,) in [0, size), as int64 (n,)."""
        values = self._permute(positions)
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


class _ClassWeightedSampler:
    """A class by its probability, then one of its samples uniformly: O(log C) a draw, whatever the set's size."""

    def __init__(self, dataset: SampledDataset, class_mass: npt.NDArray[np.float64]) -> None:
        self._samples_per_class = dataset.samples_per_class
        self._sample_ids_by_class = dataset.sample_ids_by_class
        self._class_starts = dataset.class_starts
        self._cumulative = np.cumsum(class_mass / class_mass.sum())
        # The sum may end a rounding error away from 1. Divide by the last value, so that it is exactly 1 from the last
        # class with any mass on: a draw u < 1 then never falls on an empty class at the end.
        self._cumulative /= self._cumulative[-1]

    def ids(self, seed: int, purpose: str, epoch: int, step: int, slots: range) -> npt.NDArray[np.int64]:
        uniform = generator(seed, purpose, epoch, step).random((len(slots), 2))
        # side="right": a class with probability 0 has an empty interval and is never chosen.
        classes = np.searchsorted(self._cumulative, uniform[:, 0], side="right")
        # 53 random bits for at most 2^32 members: no member is favoured by more than 2^-21. Faster than integers().
        members = (uniform[:, 1] * self._samples_per_class[classes]).astype(np.int64)
        return self._sample_ids_by_class[self._class_starts[classes] + members].astype(np.int64)


class _ProgressiveSampler:
    def __init__(self, dataset: SampledDataset, epochs: int) -> None:
        self._dataset = dataset
        self._epochs = epochs
        counts = np.asarray(dataset.samples_per_class, dtype=np.float64)
        self._by_sample = counts / counts.sum()
        self._by_class = (counts > 0) / np.count_nonzero(counts)

    def class_probabilities(self, epoch: int) -> npt.NDArray[np.float64]:
        """Of an epoch counted from 0, float64 (classes,)."""
        done = (epoch + 1) / self._epochs
        return done * self._by_class + (1 - done) * self._by_sample

    def ids(self, seed: int, purpose: str, epoch: int, step: int, slots: range) -> npt.NDArray[np.int64]:
        sampler = _ClassWeightedSampler(self._dataset, self.class_probabilities(epoch))
        return sampler.ids(seed, purpose, epoch, step, slots)
