"""An archive in a store is built into the bytes that the same archive on disk is built into."""

import io
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.object_store import Bucket, StoreError
from tests.helpers.archives import class_folders, tar_bytes, write_imagenet, zip_bytes
from tests.helpers.making import folder_bytes
from tests.helpers.source_commands import the_source
from tests.stores.conftest import Store
from tools import build_shards
from tools.sources import stored
from tools.sources.stored import StoredFile

FILES = class_folders((24, 10, 6))
KINDS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zip_bytes,
    "tar": tar_bytes,
    "tar.gz": lambda files: tar_bytes(files, "w:gz"),
}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an archive of a test has several."""
    monkeypatch.setattr(stored, "_PIECE", 4096)


def build(images: object, out: object, *options: object) -> int:
    command = ["imagefolder", "--images", images, "--out", out, "--samples-per-shard", 12, *options]
    return build_shards.main([str(each) for each in command])


@pytest.mark.parametrize(("kind", "workers"), [("zip", 2), ("tar", 1), ("tar.gz", 2)])
def test_the_set_has_the_bytes_of_one_built_from_disk(store: Store, tmp_path: Path, kind: str, workers: int) -> None:
    archive = tmp_path / f"photos.{kind}"
    archive.write_bytes(KINDS[kind](FILES))
    Bucket(store.url).write(archive.name, archive)
    store.line.faults, store.line.fault_rate = ("status 503", "refused", "cut", "short"), 0.2
    assert build(archive, tmp_path / "local", "--workers", workers) == 0
    assert build(f"{store.url}/{archive.name}", tmp_path / "stored", "--workers", workers) == 0
    assert folder_bytes(tmp_path / "stored") == folder_bytes(tmp_path / "local")
    assert store.line.made or kind == "tar.gz"  # which takes few requests
    assert not list(tmp_path.glob(".*-scratch"))


def test_the_original_tars_of_imagenet_are_read_there(store: Store, tmp_path: Path, small_pieces: None) -> None:
    write_imagenet(tmp_path / "original")
    tar, listing = "ILSVRC2012_img_train.tar", tmp_path / "original" / "ImageNet_LT_train.txt"
    Bucket(store.url).write(tar, tmp_path / "original" / tar)
    options = ("--list", listing, "--allow-partial")
    local = the_source("imagenet-lt", "--images", tmp_path / "original" / tar, *options)
    there = the_source("imagenet-lt", "--images", f"{store.url}/{tar}", *options)
    assert there.samples == local.samples
    ours, theirs = local.open(), pickle.loads(pickle.dumps(there)).open()
    assert all(theirs.fetch(ref) == ours.fetch(ref) for ref in local.samples)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_only_the_listed_images_are_fetched(store: Store, tmp_path: Path, small_pieces: None, kind: str) -> None:
    files = {f"cat/{number}.jpg": random.Random(number).randbytes(50_000) for number in range(20)}
    Bucket(store.url).write(f"a.{kind}", KINDS[kind](files))
    source = the_source("imagefolder", "--images", f"{store.url}/a.{kind}", "--allow-partial")
    chosen = source.samples[3:6]
    before = -1
    while before != store.line.body_bytes:  # what was fetched ahead of the walk through the tar may be on its way
        before = store.line.body_bytes
        time.sleep(0.3)
    fetcher = source.open()
    for ref in chosen:
        fetcher.will_fetch(ref)
    assert [fetcher.fetch(ref) for ref in chosen] == [files[ref.name] for ref in chosen]
    fetcher.close()
    assert store.line.body_bytes - before < 3 * 50_000 + 30_000  # of 20 × 50,000; the rest is zip's directory


@pytest.mark.parametrize(("kind", "what"), [("zip", "replaced"), ("tar", "replaced"), ("zip", "deleted")])
def test_an_archive_that_changes_is_noticed(
    store: Store, tmp_path: Path, small_pieces: None, capsys: pytest.CaptureFixture, kind: str, what: str
) -> None:
    bucket, name = Bucket(store.url), f"a.{kind}"
    bucket.write(name, KINDS[kind](FILES))
    source = the_source("imagefolder", "--images", f"{store.url}/{name}")
    fetcher, ref = pickle.loads(pickle.dumps(source)).open(), source.samples[7]
    if what == "deleted":
        bucket.delete([name])
    else:
        bucket.write(name, KINDS[kind](dict(reversed(FILES.items()))))
        assert the_source("imagefolder", "--images", f"{store.url}/{name}").inputs != source.inputs
    message = "was replaced while it was read" if what == "replaced" else "is no longer in the store"
    with pytest.raises(StoreError, match=f"{store.url}/{name}: {message}"):
        fetcher.fetch(ref)


def test_a_member_of_a_zip_that_comes_wrong_is_fetched_again(store: Store, small_pieces: None) -> None:
    Bucket(store.url).write("a.zip", zip_bytes(FILES))
    source = the_source("imagefolder", "--images", f"{store.url}/a.zip")
    samples, fetcher = source.samples, source.open()
    store.line.faults, store.line.fault_rate = ("bit flip",), 0.2
    for ref in samples:
        fetcher.will_fetch(ref)
        assert fetcher.fetch(ref) == FILES[ref.name]
    assert store.line.made["bit flip"] > 3


def test_what_is_no_archive_is_refused(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Bucket(store.url).write("page.zip", b"<html>no such thing</html>")
    assert build(f"{store.url}/page.zip", tmp_path / "set") == 1
    assert f"{store.url}/page.zip: not a folder, tar" in capsys.readouterr().err
    assert build(f"{store.url}/absent.zip", tmp_path / "set") == 1
    assert f"{store.url}/absent.zip: no such object in the store" in capsys.readouterr().err


def test_it_reads_as_a_file_does(store: Store, small_pieces: None) -> None:
    data = random.Random(0).randbytes(50_001)
    Bucket(store.url).write("object", data)
    ours, theirs = StoredFile(f"{store.url}/object").opened(), io.BytesIO(data)
    rng = random.Random(1)
    for _ in range(300):
        if rng.random() < 0.5:
            start, whence = rng.choice([(rng.randrange(60_000), 0), (rng.randrange(200), 1), (-rng.randrange(500), 2)])
            assert ours.seek(start, whence) == theirs.seek(start, whence)
        if rng.random() < 0.3:
            ours.will_read(rng.randrange(50_001), rng.randrange(4096))
        size = rng.randrange(9_000)
        assert ours.read(size) == theirs.read(size)
        assert ours.tell() == theirs.tell()
    assert ours.seek(0) == theirs.seek(0) == 0 and ours.read() == data
    ours.close()


@pytest.mark.slow
def test_the_workers_of_a_ray_cluster_read_it_too(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra 'ray'")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "photos.zip").write_bytes(zip_bytes(FILES))
    Bucket(store.url).write("photos.zip", tmp_path / "photos.zip")
    assert build(tmp_path / "photos.zip", tmp_path / "local") == 0
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    try:
        options = ("--executor", "ray", "--ray-address", cluster.address)
        assert build(f"{store.url}/photos.zip", tmp_path / "stored", *options) == 0
    finally:
        cluster.shutdown()
    assert folder_bytes(tmp_path / "stored") == folder_bytes(tmp_path / "local")
