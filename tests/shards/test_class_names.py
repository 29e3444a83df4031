"""Classes are matched by name: order, Unicode form and absent classes; unknown and ambiguous names are refused."""

import pickle
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.class_names import class_ids
from shards.format import DATASET_FILE
from shards.reader import ShardSet
from tests.helpers.shard_sets import small_images


def named(folder: Path, counts: Sequence[int], names: Sequence[str]) -> ShardSet:
    """A set of small images whose classes have these names."""
    opened = small_images(folder, counts)
    path = folder / DATASET_FILE
    path.write_text(replace(opened.info, class_names=tuple(names)).to_json(), encoding="utf-8")
    return ShardSet.open(folder)


def test_another_order_and_a_class_less_give_the_ids_of_the_training_set(tmp_path: Path) -> None:
    found = named(tmp_path / "a", (3, 2), ("zebra", "emu"))
    matched = found.with_classes(("emu", "okapi", "zebra"), "the training set")
    assert matched.class_names == ["emu", "okapi", "zebra"]
    assert matched.samples_per_class.tolist() == [2, 0, 3]
    assert [matched.class_names[label] for label in matched.labels] == [found.class_names[i] for i in found.labels]
    assert np.array_equal(matched.index["label"], matched.labels)
    for number in range(3):
        members = matched.sample_ids_by_class[matched.class_starts[number] : matched.class_starts[number + 1]]
        assert members.tolist() == np.flatnonzero(matched.labels == number).tolist()
    again = pickle.loads(pickle.dumps(matched))
    assert again.class_names == matched.class_names
    assert np.array_equal(again.labels, matched.labels)
    assert found.samples_per_class.tolist() == [3, 2]  # the set itself is as it was


def test_unicode_forms_are_one_name(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Zürich") for form in ("NFC", "NFD"))
    assert composed != apart
    matched = named(tmp_path / "a", (1, 2), ("Bern", apart)).with_classes(("Bern", composed), "the training set")
    assert matched.class_names == ["Bern", composed]
    with pytest.raises(ValueError, match="in different Unicode forms"):
        class_ids((composed, apart), ("a",), np.array([1, 1]), "the set", "the network")


def test_an_unknown_class_is_refused_unless_it_is_empty() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 classes of the set are not among the 1 of the network: 'gnu'"):
        class_ids(("emu", "gnu"), ("emu",), np.array([2, 1]), "the set", "the network")
    assert class_ids(("emu", "gnu"), ("emu",), np.array([2, 0]), "the set", "the network").tolist() == [0, -1]


def test_the_checksum_of_images_knows_classes_by_name_only(tmp_path: Path) -> None:
    first = named(tmp_path / "a", (3, 2), ("zebra", "emu"))
    other_order = first.with_classes(("emu", "okapi", "zebra"), "the training set")
    assert other_order.images_checksum == first.images_checksum
    assert named(tmp_path / "b", (3, 2), ("emu", "zebra")).images_checksum != first.images_checksum
    assert named(tmp_path / "c", (3, 3), ("zebra", "emu")).images_checksum != first.images_checksum
