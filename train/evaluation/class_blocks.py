"""A readable confusion matrix: classes ordered by size, and large numbers of classes summed into blocks."""

from dataclasses import dataclass

import numpy as np

MAX_BLOCKS = 100


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive classes in order of size, each within one group.

    members: class numbers of each block, int64, largest class first. groups: the group of each block.
    borders: positions of the first block of each group except the first.
    """

    members: tuple[np.ndarray, ...]
    groups: tuple[str, ...]
    borders: tuple[int, ...]


def blocks_by_size(samples_per_class: np.ndarray, groups: dict[str, np.ndarray]) -> Blocks:
    """One block per class up to MAX_BLOCKS classes; beyond that, blocks of nearly equal numbers of classes.

    Args:
        samples_per_class: of the training set, (classes,).
        groups: class numbers of many, medium and few, in that order.
    """
    classes = len(samples_per_class)
    members: list[np.ndarray] = []
    names: list[str] = []
    borders = []
    for name, numbers in groups.items():
        if len(numbers) == 0:
            continue
        if members:
            borders.append(len(members))
        ordered = numbers[np.argsort(-samples_per_class[numbers], kind="stable")]
        count = len(ordered) if classes <= MAX_BLOCKS else max(1, round(MAX_BLOCKS * len(ordered) / classes))
        parts = np.array_split(ordered, count)
        members += parts
        names += [name] * len(parts)
    return Blocks(tuple(members), tuple(names), tuple(borders))


def summed(confusion: np.ndarray, blocks: Blocks) -> np.ndarray:
    """int64 (blocks, blocks): images of each block (row) predicted as a class of each block (column)."""
    block_of = np.empty(len(confusion), dtype=np.int64)
    for number, members in enumerate(blocks.members):
        block_of[members] = number
    cells = np.zeros((len(blocks.members),) * 2, dtype=np.int64)
    true, predicted = np.nonzero(confusion)
    np.add.at(cells, (block_of[true], block_of[predicted]), confusion[true, predicted])
    return cells


def worst_pairs(confusion: np.ndarray, count: int = 50) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images): the pairs with the most mistakes; ties by share of the true class."""
    true, predicted = np.nonzero(confusion)
    wrong = true != predicted
    true, predicted = true[wrong], predicted[wrong]
    images = confusion[true, predicted]
    shares = images / confusion.sum(axis=1)[true]
    order = np.lexsort((-shares, -images))[:count]
    return [(int(true[k]), int(predicted[k]), int(images[k])) for k in order]
