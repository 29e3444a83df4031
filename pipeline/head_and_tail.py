"""Streams of the second phase of FSA (Chu et al., ECCV 2020): images of large classes, and groups around rare images.

The head are the largest classes that together hold a given share of the images; the others are the tail.
"""

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.rng import RowDraws
from pipeline.sampling import ClassDraws, SampledDataset, Sampler, members_of


def is_head(samples_per_class: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.bool_]:
    """bool (classes,): the fewest of the largest classes that hold `share` of all samples; equal ones by index."""
    order = np.argsort(-samples_per_class, kind="stable")
    held = np.cumsum(samples_per_class[order])
    wanted = Fraction(str(share))  # 0.9 · N in floating point may lie a little above an integer
    enough = held * wanted.denominator >= int(held[-1]) * wanted.numerator
    head = np.zeros(len(order), dtype=np.bool_)
    head[order[: int(np.argmax(enough)) + 1]] = True
    return head


@dataclass(frozen=True)
class HeadImages:
    """Independent draws with replacement of images of the head, all alike."""

    head_share: float = 0.9

    def over(self, dataset: SampledDataset) -> Sampler:
        counts = dataset.samples_per_class
        return ClassDraws(dataset, np.where(is_head(counts, self.head_share), counts, 0).astype(np.float64))


@dataclass(frozen=True, eq=False, repr=False)
class TailGroups:
    """Groups of rows: an image of the tail, then one of each class that its class is confused with.

    Row g · (1 + partners) is the image of the tail of group g, drawn with replacement; the partners' images are drawn
    uniformly from their classes.

    Attributes:
        partners: int64 (classes, partners), the classes that each class of the tail is confused with; rows of the head
            are not read.
        alike: draw all images of the tail alike, or all its classes.
    """

    partners: npt.NDArray[np.int64]
    head_share: float = 0.9
    alike: Literal["images", "classes"] = "images"

    def __repr__(self) -> str:
        table = hashlib.sha256(np.ascontiguousarray(self.partners, dtype=np.int64).tobytes()).hexdigest()
        shape = f"{self.partners.shape[1]} partners of sha256 {table}"
        return f"TailGroups({shape}, head_share={self.head_share}, alike={self.alike!r})"

    def over(self, dataset: SampledDataset) -> Sampler:
        counts = dataset.samples_per_class
        mass = np.where(is_head(counts, self.head_share), 0, counts if self.alike == "images" else counts > 0)
        return _GroupSampler(dataset, ClassDraws(dataset, mass.astype(np.float64)), self.partners)


class _GroupSampler:
    def __init__(self, dataset: SampledDataset, tail: ClassDraws, partners: npt.NDArray[np.int64]) -> None:
        self._dataset, self._tail, self._partners = dataset, tail, partners

    def classes(self, draws: RowDraws, purpose: str) -> npt.NDArray[np.int64]:
        return self._classes(*self._groups(draws), purpose)

    def ids(self, draws: RowDraws, purpose: str, start: int) -> npt.NDArray[np.int64]:
        of_groups, of_row, place = self._groups(draws)
        tail = self._tail.ids(of_groups, f"{purpose}/tail", start)[of_row]
        classes = self._classes(of_groups, of_row, place, purpose)
        uniform = draws.uniform(f"{purpose}/partners", (len(draws.rows),))
        return np.where(place == 0, tail, members_of(self._dataset, classes, uniform))

    def _classes(
        self, of_groups: RowDraws, of_row: npt.NDArray[np.int64], place: npt.NDArray[np.int64], purpose: str
    ) -> npt.NDArray[np.int64]:
        tail = self._tail.classes(of_groups, f"{purpose}/tail")[of_row]
        return np.where(place == 0, tail, self._partners[tail, np.maximum(place - 1, 0)])

    def _groups(self, draws: RowDraws) -> tuple[RowDraws, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Draws of the groups that the rows belong to, the position of each row's group among them, and the row's place
        in it. A group's first image decides the classes of its others, whichever rows are requested.
        """
        group, place = np.divmod(draws.rows, 1 + self._partners.shape[1])
        groups, of_row = np.unique(group, return_inverse=True)
        return RowDraws(draws.seed, draws.epoch, draws.step, groups), of_row, place
