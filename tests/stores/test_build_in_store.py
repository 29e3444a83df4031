"""A set built into a store has the bytes of one built on disk; whoever continues the build asks the store."""

from dataclasses import replace
from pathlib import Path

import pytest

from shards.build import BuildOptions, build_shard_set
from shards.format import DatasetInfo
from shards.object_store import Bucket, StoreError
from shards.reader import ShardSet
from shards.source import SampleRef
from shards.store_upload import StoreUpload, staging_folder
from shards.verify import verify_shards
from tests.helpers.making import FolderFetcher, FolderSource, folder_bytes, folder_source, pictures
from tests.stores.conftest import Store

SMALL = BuildOptions(samples_per_shard=8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    return folder_source(tmp_path / "original", pictures(30))


def build(source: FolderSource, url: str, options: BuildOptions = SMALL, workers: int = 1) -> DatasetInfo:
    return build_shard_set(source, staging_folder(url), options, workers, store=StoreUpload(url))


def objects(url: str) -> dict[str, bytes]:
    bucket = Bucket(url)
    return {name: bucket.read(name) for name in sorted(bucket.listing())}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_objects_are_the_files_of_a_local_build(
    store: Store, source: FolderSource, tmp_path: Path, cache: Path, workers: int
) -> None:
    build_shard_set(source, tmp_path / "set", SMALL)
    build(source, store.url, workers=workers)
    assert objects(store.url) == folder_bytes(tmp_path / "set")
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert not list(verify_shards(store.url))
    opened = ShardSet.open(store.url)
    assert opened.encoded(7).tobytes() == ShardSet.open(tmp_path / "set").encoded(7).tobytes()


class Interrupted(FolderSource):
    """Its fetcher is interrupted after so many images."""

    allowed = 0

    def open(self) -> FolderFetcher:
        fetcher = super().open()
        fetch, left = fetcher.fetch, iter(range(self.allowed))

        def limited(ref: SampleRef) -> bytes:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return fetch(ref)

        fetcher.fetch = limited  # type: ignore[method-assign]
        return fetcher


@pytest.mark.parametrize("allowed", [0, 8, 20, 29])
def test_another_machine_continues_what_the_store_has(
    store: Store, source: FolderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    interrupted = Interrupted(source.root, source.samples, source.class_names)
    interrupted.allowed = allowed
    with pytest.raises(KeyboardInterrupt):
        build(interrupted, store.url)
    before = {path: info for path, info in Bucket(store.url).listing().items() if path.endswith(".tar")}
    assert len(before) == allowed // 8
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of-another-machine"))
    store.line.made.clear()
    puts = count_puts(monkeypatch)
    build(source, store.url)
    assert sum(name.endswith(".tar") for name in puts) == 4 - len(before)
    build_shard_set(source, tmp_path / "set", SMALL)
    assert objects(store.url) == folder_bytes(tmp_path / "set")


def count_puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    write = Bucket.write
    monkeypatch.setattr(Bucket, "write", lambda self, name, data: (written.append(name), write(self, name, data))[1])
    return written


def test_dataset_json_comes_last_and_a_complete_set_is_left_alone(
    store: Store, source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = count_puts(monkeypatch)
    build(source, store.url)
    assert puts[0] == "build.json" and puts[-1] == "dataset.json"
    assert [name for name in puts if name.startswith("000000")] == ["000000.tar", "000000.idx", "000000.part.json"]
    puts.clear()
    Bucket(store.url).write("000000.part.json", b"left by a kill behind dataset.json")
    puts.clear()
    build(source, store.url)
    assert not puts
    assert "000000.part.json" not in Bucket(store.url).listing()


def test_a_shard_that_is_not_whole_in_the_store_is_built_again(
    store: Store, source: FolderSource, tmp_path: Path
) -> None:
    interrupted = Interrupted(source.root, source.samples, source.class_names)
    interrupted.allowed = 26
    with pytest.raises(KeyboardInterrupt):
        build(interrupted, store.url)
    bucket = Bucket(store.url)
    bucket.write("000000.tar", b"cut")
    bucket.delete(["000001.idx", "000002.part.json"])
    build(source, store.url)
    build_shard_set(source, tmp_path / "set", SMALL)
    assert objects(store.url) == folder_bytes(tmp_path / "set")


@pytest.mark.parametrize("complete", [True, False])
def test_another_build_at_the_same_url_is_refused(store: Store, source: FolderSource, complete: bool) -> None:
    if complete:
        build(source, store.url)
    else:
        interrupted = Interrupted(source.root, source.samples, source.class_names)
        with pytest.raises(KeyboardInterrupt):
            build(interrupted, store.url)
    with pytest.raises(ValueError, match=rf"{store.url}: .*options\.seed: 0 before, 5 now"):
        build(source, store.url, replace(SMALL, seed=5))


def test_foreign_objects_are_never_overwritten(store: Store, source: FolderSource) -> None:
    Bucket(store.url).write("000000.tar", b"somebody's")
    with pytest.raises(
        ValueError, match=rf"{store.url}: holds 1 objects that were not written by a build \(000000.tar"
    ):
        build(source, store.url)
    assert objects(store.url) == {"000000.tar": b"somebody's"}


def test_a_build_gets_through_a_failing_store_or_stops_and_continues(
    store: Store, source: FolderSource, tmp_path: Path
) -> None:
    store.line.methods = ("GET", "PUT", "POST", "DELETE")
    store.line.faults, store.line.fault_rate = ("status 503", "refused"), 0.3
    build(source, store.url)
    build_shard_set(source, tmp_path / "set", SMALL)
    assert store.line.made.total() > 3
    store.line.faults, store.line.fault_rate = ("status 403",), 1.0
    with pytest.raises(StoreError, match=rf"{store.url}other"):
        build(source, f"{store.url}other")
    store.line.fault_rate = 0.0
    build(source, f"{store.url}other")
    assert objects(store.url) == objects(f"{store.url}other") == folder_bytes(tmp_path / "set")


def test_damage_in_the_store_is_found_and_named_by_url(store: Store, source: FolderSource) -> None:
    build(source, store.url)
    bucket = Bucket(store.url)
    tar = bytearray(bucket.read("000001.tar"))
    tar[700] ^= 1
    bucket.write("000001.tar", bytes(tar))
    bucket.delete(["000002.tar", "000003.idx"])
    faults = list(verify_shards(store.url))
    assert any(fault.startswith(f"{store.url}/000001.tar: sample 8") for fault in faults)
    assert any(fault.startswith(f"{store.url}/000002.tar: not found") for fault in faults)
    assert any(fault.startswith(f"{store.url}/000003.idx: not found") for fault in faults)
    bucket.delete(["dataset.json"])
    assert any("dataset.json" in fault for fault in verify_shards(store.url))


def test_the_commands_of_the_page_build_verify_and_show_a_set(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools import build_shards, inspect_shards, verify_shards

    command = ["digits-lt", "--split", "test", "--samples-per-shard", "200", "--workers", "1", "--out"]
    assert build_shards.main([*command, f"{store.url}/"]) == 0
    assert build_shards.main([*command, str(tmp_path / "set")]) == 0
    assert objects(store.url) == folder_bytes(tmp_path / "set")
    assert verify_shards.main([store.url, str(tmp_path / "set")]) == 0
    assert inspect_shards.main([store.url, "--json"]) == 0
    assert f"{store.url}: intact, all checksums" in capsys.readouterr().out
    assert build_shards.main([*command, store.url, "--seed", "3"]) == 1
    assert f"error: {store.url}: holds another data set" in capsys.readouterr().err
    assert verify_shards.main([f"{store.url}/nothing"]) == 1
    assert inspect_shards.main([f"{store.url}/nothing"]) == 1
    assert "no complete shard set at this URL" in capsys.readouterr().err
