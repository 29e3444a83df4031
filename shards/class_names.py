"""Class names as the link between two shard sets, or between a set and a trained network.

Names are compared in one Unicode form (NFC): macOS returns "é" as two characters, other systems as one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

_SHOWN = 5


def one_form(name: str) -> str:
    """The form used for comparing names: NFC."""
    return unicodedata.normalize("NFC", name)


def class_ids(found: Sequence[str], expected: Sequence[str], counts: np.ndarray, where: str, whose: str) -> np.ndarray:
    """For each class of a set, its id among the expected classes: int64 (len(found),), −1 for one without samples.

    The order may differ, and the set may lack classes. A class without samples does not have to be known.

    Args:
        found: class names of the set; counts: int (len(found),), its samples per class.
        expected: class names of the network or the training set.
        where, whose: what the two belong to, for messages.

    Raises:
        ValueError: a class with samples is unknown, or two classes have the same name in different Unicode forms.
    """
    ids = _ids(expected, whose)
    _ids(found, where)
    matched = np.array([ids.get(one_form(name), -1) for name in found], dtype=np.int64).reshape(-1)
    unknown = [name for name, i, count in zip(found, matched, counts, strict=True) if i < 0 and count > 0]
    if unknown:
        raise ValueError(
            f"classes differ: {len(unknown)} of {len(found)} classes of {where} are not among the {len(expected)} of "
            f"{whose}: {shown(unknown)}; expected names such as {shown(expected)}. Use the same folder names or labels "
            "and build the set again, with --classes-from TRAIN_SET if it lacks some of the classes"
        )
    return matched


def shown(names: Sequence[str]) -> str:
    """The first names, and the number of further ones."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + rest


def _ids(names: Sequence[str], where: str) -> dict[str, int]:
    ids: dict[str, int] = {}
    for position, name in enumerate(names):
        other = ids.setdefault(one_form(name), position)
        if other != position:
            raise ValueError(
                f"{where}: classes {other} and {position} are both named {name!r}, in different Unicode forms; "
                "rename one"
            )
    return ids
