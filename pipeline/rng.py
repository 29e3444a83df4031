"""Counter-based random generators: every draw of a run is a pure function of (seed, purpose, epoch, step, row)."""

import math
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

# Philox produces 64-bit words four at a time, and a uniform double uses one word.
_WORDS_PER_BLOCK = 4


def generator(seed: int, purpose: str, epoch: int, step: int) -> np.random.Generator:
    """The generator for one decision of one step, e.g. `generator(0, "original/view0/crop", epoch=3, step=17)`.

    Philox is keyed by (seed, purpose) and its counter starts at (epoch, step), so there is no state to save, and a new
    purpose never changes the draws of another. The rank is never part of it: every rank can draw any row of the batch.
    One generator can draw 2^128 blocks before it reaches those of the next step.
    """
    key = np.array([seed, _purpose_word(purpose)], dtype=np.uint64)
    counter = np.array([0, 0, step, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclass(frozen=True)
class RowDraws:
    """The draws for some rows of one step's global batch, made without those of the other rows.

    Attributes:
        rows: int64 (n,), n >= 1, row numbers in the global batch; usually contiguous, because all rows between the
            first and the last are drawn.
    """

    seed: int
    epoch: int
    step: int
    rows: npt.NDArray[np.int64]

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Numbers in [0, 1), float64 of `shape`, whose first axis corresponds to `rows`.

        Row r of the batch has the same numbers regardless of the other rows requested: row r of
        `generator(...).random((batch, *shape[1:]))`.

        Raises:
            ValueError: the length of the first axis is not that of `rows`.
        """
        if shape[0] != len(self.rows):
            raise ValueError(f"{purpose}: {shape[0]} rows requested, expected {len(self.rows)}")
        first, end = int(self.rows.min()), int(self.rows.max()) + 1
        blocks, words = divmod(first * math.prod(shape[1:]), _WORDS_PER_BLOCK)
        rng = generator(self.seed, purpose, self.epoch, self.step)
        rng.bit_generator.advance(blocks)  # type: ignore[attr-defined]
        rng.random(words)
        drawn = rng.random((end - first, *shape[1:]))
        return drawn if len(drawn) == len(self.rows) and (np.diff(self.rows) == 1).all() else drawn[self.rows - first]


def _purpose_word(purpose: str) -> int:
    # Python's hash() is salted per process; this one is part of the plan's definition.
    return int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest(), "little")
