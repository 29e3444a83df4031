"""Requests are repeated where that may help, and name the object and the cause where it does not."""

import time
from pathlib import Path

import pytest

from shards.object_store import Bucket, Patience, StoreError, is_url, set_location
from tests.stores.conftest import Store

QUICK = Patience(attempts=6, first_pause_seconds=0.01, longest_pause_seconds=0.05, timeout_seconds=0.4)


def test_a_url_is_no_folder() -> None:
    assert set_location("s3://bucket/set/") == "s3://bucket/set"
    assert set_location("data/set/") == Path("data/set")
    assert is_url("gs://a/b") and not is_url("data/set") and not is_url(Path("data"))


def test_a_store_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ftp:// is not a supported store; expected s3, gs, az, https"):
        Bucket("ftp://host/set")


def test_objects_are_written_listed_read_and_deleted(store: Store, tmp_path: Path) -> None:
    bucket = Bucket(store.url)
    data = bytes(range(256)) * 40
    (tmp_path / "file").write_bytes(data)
    bucket.write("a.bin", data)
    bucket.write("b.bin", tmp_path / "file")
    assert {name: info.bytes for name, info in bucket.listing().items()} == {"a.bin": len(data), "b.bin": len(data)}
    assert bucket.read("b.bin") == data and bucket.read("a.bin", 100, 333) == data[100:333]
    bucket.download("a.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    bucket.delete(["a.bin"])
    assert list(bucket.listing()) == ["b.bin"]
    with pytest.raises(FileNotFoundError, match=rf"{store.url}/a.bin: no such object"):
        bucket.read("a.bin")


@pytest.mark.parametrize("fault", ["status 500", "status 503", "status 429", "refused", "cut", "short", "stall"])
def test_a_fault_of_the_moment_is_repeated(store: Store, fault: str) -> None:
    bucket = Bucket(store.url, QUICK)
    bucket.write("a.bin", bytes(5000))
    store.line.faults, store.line.fault_rate, store.line.seed = (fault,), 0.5, 3
    for start in range(4):
        assert bucket.read("a.bin", start, 5000 - start) == bytes(5000 - 2 * start)
    assert store.line.made[fault] == bucket.traffic.repeated > 0
    assert bucket.traffic.requests == 5 + bucket.traffic.repeated


def test_a_lasting_fault_is_named_after_all_attempts(store: Store) -> None:
    bucket = Bucket(store.url, QUICK)
    bucket.write("a.bin", bytes(500))
    store.line.faults, store.line.fault_rate = ("status 503",), 1.0
    with pytest.raises(StoreError, match=rf"{store.url}/a.bin, bytes 3 to 40: .*503.*the same command continues"):
        bucket.read("a.bin", 3, 40)
    assert bucket.traffic.repeated == QUICK.attempts - 1


def test_what_the_store_refuses_is_asked_once(store: Store) -> None:
    bucket = Bucket(store.url)
    bucket.write("a.bin", bytes(500))
    with pytest.raises(StoreError, match=r"bytes 600 to 700: .*416"):
        bucket.read("a.bin", 600, 700)
    assert bucket.traffic.repeated == 0


def test_a_replaced_object_is_noticed(store: Store) -> None:
    bucket = Bucket(store.url)
    for content, changed in ((b"one", False), (b"one", False), (b"two", True)):
        bucket.write("a", content)
        bucket.read("a")
        assert bucket.changed("a") == changed


def test_pauses_grow_to_a_limit() -> None:
    pauses = list(Patience(attempts=9, first_pause_seconds=1, longest_pause_seconds=8).pauses())
    assert len(pauses) == 8
    for pause, least in zip(pauses, (1, 2, 4, 8, 8, 8, 8, 8), strict=True):
        assert least <= pause <= 1.5 * least
    assert sum(Patience().pauses()) > 40  # a store that restarts is waited for


def test_nobody_there_is_a_named_error_too(unused: str = "http://127.0.0.1:9") -> None:
    pytest.importorskip("obstore", reason="needs the extra 'store'")
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9/set/a"):
        Bucket(f"{unused}/set", QUICK).read("a", 0, 5)
    assert time.monotonic() - started < 5
