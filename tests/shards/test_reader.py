"""An opened set gives exactly what was built, and every later change is named."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import reader
from shards.build import BuildOptions, build_shard_set
from shards.reader import CorruptSampleError, ShardSet
from tests.helpers.making import folder_source, pictures


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built")
    build_shard_set(folder_source(root / "original", pictures(30)), root / "set", BuildOptions(samples_per_shard=8))
    return root / "set"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "set")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_classes_partition_the_samples(folder: Path) -> None:
    shards = ShardSet.open(folder)
    for label in range(shards.num_classes):
        members = shards.sample_ids_by_class[shards.class_starts[label] : shards.class_starts[label + 1]]
        assert members.tolist() == np.flatnonzero(shards.labels == label).tolist()
    assert shards.samples_per_class.tolist() == [10, 10, 10]
    assert (len(shards), shards.class_names) == (30, ["class 0", "class 1", "class 2"])


def test_encoded_is_a_read_only_view(folder: Path) -> None:
    image = ShardSet.open(folder).encoded(3)
    assert image.dtype == np.uint8 and not image.flags.owndata and not image.flags.writeable
    assert image[:2].tolist() == [0xFF, 0xD8] and image[-2:].tolist() == [0xFF, 0xD9]


def test_a_set_and_its_error_travel_to_other_processes(folder: Path) -> None:
    shards = pickle.loads(pickle.dumps(ShardSet.open(folder)))
    assert len(shards) == 30
    error = pickle.loads(pickle.dumps(CorruptSampleError("a.tar", 3, "x.jpg", "gone")))
    assert (error.sample, str(error)) == (3, str(CorruptSampleError("a.tar", 3, "x.jpg", "gone")))


def test_a_flipped_byte_is_named_by_shard_sample_and_source(folder: Path) -> None:
    shards = ShardSet.open(folder)
    record = shards.index[11]
    flip(folder / "000001.tar", int(record["offset"]) + 40)
    shards = ShardSet.open(folder)
    with pytest.raises(CorruptSampleError, match=r"000001\.tar: sample 11 \(.*jpg\) is corrupt: crc32") as caught:
        shards.check_sample(11)
    assert (caught.value.sample, caught.value.source) == (11, shards.source_of(11))
    for sample in set(range(30)) - {11}:
        shards.check_sample(sample)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-512])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove("dataset.json"), FileNotFoundError, "not a complete shard set"),
        (remove("000002.tar"), FileNotFoundError, r"000002\.tar: not found, but dataset.json lists it"),
        (remove("index.npy"), FileNotFoundError, r"index\.npy: not found"),
        (cut("000001.tar"), ValueError, r"000001\.tar: \d+ bytes found, \d+ written; the set was changed"),
        (lambda folder: flip(folder / "index.npy", 300), ValueError, r"index\.npy: sha256 \w+ found"),
        (lambda folder: flip(folder / "by_class.npy", 200), ValueError, r"by_class\.npy: sha256 \w+ found"),
        (lambda folder: (folder / "dataset.json").write_bytes(b"\xff"), ValueError, r"dataset\.json: not UTF-8"),
    ],
)
def test_what_changed_after_the_build_is_found_at_open(
    folder: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message):
        ShardSet.open(folder)


def test_too_many_open_files_says_so(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    fourth_free = [number for number in range(len(in_use) + 4) if number not in in_use][3]
    resource.setrlimit(resource.RLIMIT_NOFILE, (fourth_free, limits[1]))
    try:
        with pytest.raises(RuntimeError, match="ulimit -n"):
            ShardSet.open(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), name=st.sampled_from(["index.npy", "by_class.npy"]))
def test_unhashed_mutated_arrays_never_read_outside_of_a_tar(
    built: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    """Above HASHED_INDEX_BYTES arrays are not hashed at open; only ValueError and CorruptSampleError may come out."""
    folder = shutil.copytree(built, tmp_path_factory.mktemp("fuzz") / "set")
    original = (folder / name).read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    mutated = (original[:position] + data.draw(st.binary(min_size=1, max_size=9)) + original[position:])[
        : len(original)
    ]
    (folder / name).write_bytes(mutated)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "HASHED_INDEX_BYTES", 0)
        try:
            shards = ShardSet.open(folder)
            for sample in range(len(shards)):
                shards.check_sample(sample)
        except (ValueError, CorruptSampleError) as error:
            assert str(folder) in str(error)


def test_a_pickle_in_place_of_the_index_is_not_run(folder: Path) -> None:
    np.save(folder / "index.npy", np.array([{"a": 1}], object), allow_pickle=True)
    record = json.loads((folder / "dataset.json").read_text())
    data = (folder / "index.npy").read_bytes()
    record["files"][0].update(bytes=len(data), sha256=reader.hash_file(folder / "index.npy"))
    (folder / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"index\.npy: is not an array of 30"):
        ShardSet.open(folder)
