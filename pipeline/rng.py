"""Counter-based random generators: every draw of a run is a pure function of (seed, purpose, epoch, step)."""

from hashlib import blake2b

import numpy as np


def generator(seed: int, purpose: str, epoch: int, step: int) -> np.random.Generator:
    """The generator of one decision of one step, e.g. ``generator(0, "original/view0/crop", epoch=3, step=17)``.

    Philox is keyed by (seed, purpose) and its counter starts at (epoch, step), so there is no state to save, and a new
    purpose never moves the draws of another. The rank is never part of it: every rank can draw the whole global batch.
    Within one generator 2^128 blocks may be drawn before the next step's would begin.
    """
    key = np.array([seed, _purpose_word(purpose)], dtype=np.uint64)
    counter = np.array([0, 0, step, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _purpose_word(purpose: str) -> int:
    # Python's own hash() is salted per process; this one is part of the plan's definition.
    return int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest(), "little")
