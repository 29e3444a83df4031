"""When a step mixes the two streams, the value of λ, and the position of the box."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.rng import generator

# Coins are drawn in blocks: counting a run's mixing steps at the start then takes milliseconds instead of seconds.
_COINS = 1024


# Each of a step's streams and the loader query its coin, from several threads.
@lru_cache(maxsize=16)
def _coins(seed: int, epoch: int, block: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), float64 (_COINS,): a step mixes if its number is below the rule's probability."""
    return generator(seed, "mix/coin", epoch, block).random(_COINS)


Rounding = Literal["floor", "ceil"]
Box = tuple[int, int, int, int]


def cut_box(height: int, width: int, lam: float, row: int, column: int, rounding: Rounding) -> Box:
    """The box around (row, column) that covers about 1 − lam of the image: top, left, bottom, right, half-open.

    The side is height·√(1−lam) (and width·√(1−lam)), rounded down in CMO's official code and up in GLMC's. Half of it,
    rounded down, goes to each side of the centre, and the box is clipped to the image. So the side before clipping is
    always even, and a side below 2 gives an empty box.
    """
    to_int = math.floor if rounding == "floor" else math.ceil
    ratio = math.sqrt(1.0 - lam)
    half_height, half_width = to_int(height * ratio) // 2, to_int(width * ratio) // 2
    return (
        max(row - half_height, 0),
        max(column - half_width, 0),
        min(row + half_height, height),
        min(column + half_width, width),
    )


def uncovered_share(box: Box, height: int, width: int) -> float:
    """The share of the image outside the box: the λ that matches the pasted area."""
    top, left, bottom, right = box
    return 1.0 - (bottom - top) * (right - left) / (height * width)


@dataclass(frozen=True)
class MixPlan:
    """How one global batch is mixed.

    Attributes:
        paste: whether the step mixes; streams with `when="mixing"` exist only then.
        lam: float64 (B,), weight of the ORIGINAL image's label, after the rule's correction.
        boxes: int32 (B, 4), rows (top, left, bottom, right), half-open; empty (0, 0, 0, 0) if nothing is pasted.
    """

    paste: bool
    lam: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lam)

    def take(self, indices: npt.NDArray[np.int64]) -> "MixPlan":
        """The plan for these positions of the batch, in this order."""
        return MixPlan(self.paste, self.lam[indices], self.boxes[indices])

    @staticmethod
    def none(size: int) -> "MixPlan":
        """The plan that leaves a batch of `size` images unchanged: empty boxes and λ = 1."""
        return MixPlan(False, np.ones(size), np.zeros((size, 4), dtype=np.int32))


@dataclass(frozen=True)
class MixRule:
    """A method's mixing rule; the defaults are those of CMO's official code.

    One λ and one box per step, shared by all images of the global batch, as in CMO and GLMC.

    Attributes:
        kind: "cutmix" draws a box; "mixup" only draws λ, for blending whole images.
        probability: chance that a step inside the window mixes.
        beta: λ ~ Beta(beta, beta); 1 is the uniform distribution.
        plain_first: epochs at the start that never mix. CMO's code mixes when `3 < epoch` (from 0), hence 4.
        plain_last: epochs at the end that never mix.
        rounding: rounding of the box's side: "floor" in CMO, "ceil" in GLMC.
        correct_lambda: replace λ by the share of the image outside the clipped box (CMO yes, GLMC no).
    """

    kind: Literal["cutmix", "mixup"] = "cutmix"
    probability: float = 0.5
    beta: float = 1.0
    plain_first: int = 4
    plain_last: int = 3
    rounding: Rounding = "floor"
    correct_lambda: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"mix rule: probability must be in [0, 1], found {self.probability}")
        if not self.beta > 0.0:
            raise ValueError(f"mix rule: beta must be above 0, found {self.beta}")
        if self.plain_first < 0 or self.plain_last < 0:
            raise ValueError(
                f"mix rule: plain_first and plain_last must be at least 0, found {self.plain_first}, {self.plain_last}"
            )

    def active(self, epoch: int, epochs: int) -> bool:
        """Whether `epoch` (from 0, of `epochs`) is in the window in which steps may mix."""
        return self.plain_first <= epoch < epochs - self.plain_last

    def mixes(self, seed: int, epoch: int, step: int, epochs: int) -> bool:
        """One step's coin. It is drawn separately and first: a step that does not mix needs no second stream."""
        block, position = divmod(step, _COINS)
        return self.active(epoch, epochs) and bool(_coins(seed, epoch, block)[position] < self.probability)

    def mixing_steps(self, seed: int, epoch: int, steps: int, epochs: int) -> npt.NDArray[np.int64]:
        """The steps of an epoch that mix, ascending; uses the same coins as `mixes`."""
        if not self.active(epoch, epochs):
            return np.empty(0, dtype=np.int64)
        blocks = [_coins(seed, epoch, block) for block in range(-(-steps // _COINS))]
        return np.flatnonzero(np.concatenate(blocks)[:steps] < self.probability)

    def draw(self, seed: int, epoch: int, step: int, epochs: int, size: int, image_size: tuple[int, int]) -> MixPlan:
        """The mix for `size` rows of a global batch of images of `image_size` (height, width)."""
        if not self.mixes(seed, epoch, step, epochs):
            return MixPlan.none(size)
        lam = float(generator(seed, "mix/lam", epoch, step).beta(self.beta, self.beta))
        box = (0, 0, 0, 0)
        if self.kind == "cutmix":
            height, width = image_size
            row, column = generator(seed, "mix/centre", epoch, step).integers(0, image_size).tolist()
            box = cut_box(height, width, lam, row, column, self.rounding)
            if self.correct_lambda:
                lam = uncovered_share(box, height, width)
        return MixPlan(True, np.full(size, lam), np.tile(np.array(box, dtype=np.int32), (size, 1)))
