"""Verification finds every single-byte change of a set, and says where."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from shards.build import BuildOptions, build_shard_set
from shards.reader import ShardSet
from shards.verify import verify_shards
from tests.helpers.making import folder_source, pictures


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built")
    build_shard_set(folder_source(root / "original", pictures(20)), root / "set", BuildOptions(samples_per_shard=8))
    return root / "set"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "set")


def change(path: Path, position: int, value: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= value
    path.write_bytes(data)


def test_a_fresh_set_has_no_fault(folder: Path) -> None:
    assert list(verify_shards(folder)) == []


def test_any_flipped_bit_outside_of_dataset_json_is_found(folder: Path) -> None:
    rng = random.Random(0)
    for path in sorted(folder.iterdir()):
        if path.name == "dataset.json":
            continue
        whole = path.read_bytes()
        for _ in range(12):
            change(path, rng.randrange(len(whole)), 1 << rng.randrange(8))
            assert any(path.name in fault for fault in verify_shards(folder)), path.name
            path.write_bytes(whole)


def test_a_damaged_image_is_named_by_sample_and_source(folder: Path) -> None:
    shards = ShardSet.open(folder)
    change(folder / "000001.tar", int(shards.index["offset"][9]) + 100)
    faults = list(verify_shards(folder))
    assert len(faults) == 2
    assert "000001.tar: sha256" in faults[0]
    assert "000001.tar: sample 9 (" in faults[1] and shards.source_of(9) in faults[1] and "crc32" in faults[1]


def test_a_missing_source_list_hides_no_other_fault(folder: Path) -> None:
    change(folder / "000000.tar", int(ShardSet.open(folder).index["offset"][2]) + 100)
    (folder / "sources.txt").unlink()
    assert any("sample 2 (" in fault and "sources.txt is missing" in fault for fault in verify_shards(folder))


def test_a_changed_label_is_found_even_if_the_checksum_is_not_looked_at(folder: Path) -> None:
    shards = ShardSet.open(folder)
    after_image = int(shards.index["offset"][3]) + (int(shards.index["size"][3]) + 511) // 512 * 512
    change(folder / "000000.tar", after_image + 512, 7)
    assert any("sample 3 (" in fault and "label b'" in fault for fault in verify_shards(folder))


@pytest.mark.parametrize("keep", [0, 100, 512, 5000, 12_000])
def test_a_cut_tar_is_found(folder: Path, keep: int) -> None:
    tar = folder / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:keep])
    faults = list(verify_shards(folder))
    assert f"{keep} bytes found" in faults[0]
    assert any("samples found" in fault or "not readable" in fault for fault in faults[1:])


@pytest.mark.parametrize(
    "name", ["000001.tar", "000001.idx", "index.npy", "by_class.npy", "sources.txt", "dataset.json"]
)
def test_a_missing_file_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert any(f"{name}: not found" in fault for fault in verify_shards(folder))


def test_swapped_shards_are_found(folder: Path) -> None:
    one, other = (folder / f"00000{i}.tar" for i in (0, 1))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    faults = "\n".join(verify_shards(folder))
    assert "000000.tar: sample 0" in faults and "000001.tar: sample 8" in faults


def test_garbage_in_tar_headers_never_raises(folder: Path) -> None:
    rng, tar = random.Random(1), folder / "000000.tar"
    whole = tar.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        at = rng.randrange(0, len(whole), 512)
        damaged[at : at + 512] = bytes(rng.choice(b"\x00\x20017x5LgKS\xff") for _ in range(512))
        tar.write_bytes(damaged)
        assert any("000000.tar" in fault for fault in verify_shards(folder))
