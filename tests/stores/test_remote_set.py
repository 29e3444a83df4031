"""A set in a store gives what the same set on disk gives, whatever happens on the way, or an error that says what."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.plan import Plan, Position, Stream
from pipeline.sampling import ClassWeighted, Shuffled
from pipeline.upcoming import Upcoming
from pipeline.views.view import View, Whole
from shards import local_copy
from shards.local_copy import CacheOptions, cache_bytes
from shards.object_store import Bucket, StoreError
from shards.reader import CorruptSampleError, ShardSet
from shards.remote_set import RemoteShardSet
from tests.helpers.s3 import upload
from tests.helpers.shard_sets import flip_a_byte, photos, write_shard_set
from tests.stores import test_object_store
from tests.stores.conftest import Store

COUNTS = (30, 12, 5)
# No test here stalls a request: on a busy machine 64 at a time may each take longer than a moment.
QUICK = replace(test_object_store.QUICK, timeout_seconds=5.0)
VIEW = View(Whole(32))
_ON_DISK = 26 * 4096  # bytes of a sample of `large_set`, and the blocks that it begins and ends in


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return photos(tmp_path_factory.mktemp("built") / "set", COUNTS)


@pytest.fixture
def remote(store: Store, built: ShardSet, tmp_path: Path) -> RemoteShardSet:
    """The set in the store, opened; nothing of its images is here yet."""
    upload(built.folder, store.url)
    return RemoteShardSet(store.url, CacheOptions(tmp_path / "cache"), QUICK)


def assert_same_images(remote: ShardSet, local: ShardSet) -> None:
    for sample in range(len(local)):
        assert remote.encoded(sample).tobytes() == local.encoded(sample).tobytes()


def test_it_is_opened_like_a_folder(remote: RemoteShardSet, built: ShardSet, store: Store) -> None:
    assert remote.checksum == built.checksum and len(remote) == len(built)
    assert np.array_equal(remote.index, built.index)
    assert np.array_equal(remote.sample_ids_by_class, built.sample_ids_by_class)
    assert str(remote.path) == store.url and remote.folder.is_dir()
    assert remote.source_of(3) == built.source_of(3)
    again = ShardSet.open(store.url, CacheOptions(remote.folder.parent))
    assert isinstance(again, RemoteShardSet)


@pytest.mark.parametrize("ahead", [False, True])
def test_images_are_those_on_disk_and_each_byte_is_fetched_once(
    remote: RemoteShardSet, built: ShardSet, ahead: bool
) -> None:
    whole = sum(shard.bytes for shard in built.info.shards)
    before = remote.bucket.traffic.bytes_read
    if ahead:
        remote.will_read(np.random.default_rng(0).permutation(len(built)))
    assert_same_images(remote, built)
    fetched = remote.bucket.traffic.bytes_read - before
    assert 0.75 * whole < fetched <= whole  # not the headers between
    requests = remote.bucket.traffic.requests
    assert_same_images(remote, built)
    assert_same_images(pickle.loads(pickle.dumps(remote)), built)
    assert remote.bucket.traffic.requests == requests


def test_small_images_come_in_blocks_and_large_ones_alone(store: Store, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    images = [noise.bytes(1_000) for _ in range(60)] + [noise.bytes(100_000) for _ in range(4)]
    built = write_shard_set(tmp_path / "set", images, [i % 4 for i in range(64)], shards=1)
    upload(built.folder, store.url)
    remote = RemoteShardSet(store.url, CacheOptions(tmp_path / "cache"), QUICK)
    before = remote.bucket.traffic.requests
    remote.will_read(np.array([5]))
    remote.encoded(5)
    assert remote.copy.present[:20].all() and not remote.copy.present[30:].any()
    remote.will_read(np.array([62]))
    remote.encoded(62)
    assert remote.copy.present[60:].tolist() == [0, 0, 1, 0]
    assert remote.bucket.traffic.requests == before + 2
    assert_same_images(remote, built)


def test_a_killed_reader_leaves_a_copy_that_the_next_one_uses(
    remote: RemoteShardSet, built: ShardSet, store: Store
) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
from shards.local_copy import CacheOptions
from shards.remote_set import RemoteShardSet
remote = RemoteShardSet({store.url!r}, CacheOptions(Path({str(remote.folder.parent)!r})))
remote.encoded(0), remote.encoded(40)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert killed.returncode == -9
    requests = remote.bucket.traffic.requests
    assert remote.encoded(0).tobytes() == built.encoded(0).tobytes()
    assert remote.encoded(40).tobytes() == built.encoded(40).tobytes()
    assert remote.bucket.traffic.requests == requests
    assert_same_images(remote, built)


def test_a_copy_that_was_damaged_is_fetched_again(remote: RemoteShardSet, built: ShardSet) -> None:
    assert_same_images(remote, built)
    for tar in remote.folder.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))  # the map says that all is there
    assert_same_images(remote, built)
    for tar in remote.folder.glob("*.tar"):
        tar.unlink()
    assert_same_images(remote, built)
    (remote.folder / "index.npy").write_bytes(bytes((remote.folder / "index.npy").stat().st_size))
    assert_same_images(pickle.loads(pickle.dumps(remote)), built)


def test_a_lying_line_gives_the_right_bytes_in_the_end(
    remote: RemoteShardSet, built: ShardSet, store: Store, tmp_path: Path
) -> None:
    store.line.faults = ("bit flip", "shifted", "garbage", "short", "cut")
    store.line.fault_rate = 0.4
    for number in range(4):
        again = RemoteShardSet(store.url, CacheOptions(tmp_path / str(number)), QUICK)
        again.will_read(np.arange(0, len(built), 7 - number))
        assert_same_images(again, built)
    assert sum(store.line.made.values()) > 12


def test_an_index_that_comes_wrong_is_fetched_again_or_named(store: Store, built: ShardSet, tmp_path: Path) -> None:
    upload(built.folder, store.url)
    store.line.faults, store.line.fault_rate = ("bit flip",), 0.3
    for number in range(6):
        opened = RemoteShardSet(store.url, CacheOptions(tmp_path / str(number)), QUICK)
        assert opened.checksum == built.checksum
    store.line.fault_rate = 1.0
    with pytest.raises((StoreError, ValueError), match=store.url):
        RemoteShardSet(store.url, CacheOptions(tmp_path / "never"), QUICK)
    assert store.line.made["bit flip"] > 5


def test_lasting_damage_is_a_corrupt_sample_as_on_disk(store: Store, built: ShardSet, tmp_path: Path) -> None:
    damaged = ShardSet.open(shutil.copytree(built.folder, tmp_path / "set"))
    flip_a_byte(damaged, 7)
    upload(damaged.folder, store.url)
    remote = RemoteShardSet(store.url, CacheOptions(tmp_path / "cache"), QUICK)
    remote.will_read(np.arange(len(remote)))
    with pytest.raises(CorruptSampleError, match=rf"{store.url}/00000\d.tar: sample 7 \(original/7.jpg\)"):
        remote.check_sample(7)
    for sample in set(range(len(built))) - {7}:
        assert remote.encoded(sample).tobytes() == built.encoded(sample).tobytes()


def test_a_replaced_shard_is_named(remote: RemoteShardSet, store: Store, built: ShardSet) -> None:
    remote.encoded(0)
    size = built.info.shards[0].bytes
    Bucket(store.url).write("000000.tar", np.random.default_rng(0).bytes(size))
    far = built.info.shards[0].samples - 1
    with pytest.raises(StoreError, match=r"000000.tar.*was replaced while it was in use"):
        remote.encoded(far)


def test_a_vanished_shard_is_named(remote: RemoteShardSet, store: Store) -> None:
    Bucket(store.url).delete(["000001.tar"])
    with pytest.raises(FileNotFoundError, match=rf"{store.url}/000001.tar.*no such object"):
        remote.encoded(len(remote) - 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda bucket: bucket.delete(["000001.tar"]), "000001.tar: not in the store, but dataset.json lists it"),
        (lambda bucket: bucket.write("000001.tar", b"x"), "000001.tar: 1 bytes in the store"),
        (lambda bucket: bucket.delete(["dataset.json"]), "no complete shard set at this URL"),
        (lambda bucket: bucket.write("dataset.json", b"\xff"), "dataset.json: not UTF-8"),
        (lambda bucket: bucket.write("dataset.json", b"{"), "dataset.json: not valid JSON"),
    ],
)
def test_an_incomplete_set_is_refused_when_it_is_opened(
    store: Store, built: ShardSet, tmp_path: Path, spoil: Any, message: str
) -> None:
    upload(built.folder, store.url)
    spoil(Bucket(store.url))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        RemoteShardSet(store.url, CacheOptions(tmp_path / "cache"), QUICK)


def test_a_store_that_fails_in_the_background_ends_the_reader_soon(remote: RemoteShardSet, store: Store) -> None:
    store.line.faults, store.line.fault_rate = ("status 500",), 1.0
    remote.will_read(np.arange(len(remote)))
    with pytest.raises(StoreError, match=r"status code: 500"):
        remote.encoded(3)


def test_threads_may_share_a_set(remote: RemoteShardSet, built: ShardSet) -> None:
    samples = np.random.default_rng(1).integers(0, len(built), 300).tolist()

    def read(sample: int) -> bool:
        remote.will_read(np.array([sample, (sample * 7) % len(built)]))
        return remote.encoded(sample).tobytes() == built.encoded(sample).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, samples))


def large_set(folder: Path) -> ShardSet:
    noise = np.random.default_rng(0)
    return write_shard_set(folder, [noise.bytes(100_000) for _ in range(40)], [i % 4 for i in range(40)], shards=4)


def test_the_copy_stays_below_its_limit_and_keeps_what_an_epoch_still_needs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteShardSet, "samples_ahead", 2)
    built = large_set(tmp_path / "set")
    upload(built.folder, store.url)
    limit = 2_000_000  # half of it
    remote = RemoteShardSet(store.url, CacheOptions(tmp_path / "cache", limit), QUICK)
    fetched = []
    for epoch in range(4):
        before = remote.bucket.traffic.bytes_read
        order = np.random.default_rng(epoch).permutation(40)
        for position, sample in enumerate(order.tolist()):
            remote.will_read(order[position : position + 2])
            assert remote.encoded(sample).tobytes() == built.encoded(sample).tobytes()
            assert cache_bytes(tmp_path / "cache") <= limit * (1 + 1 / 64) + 3 * 100_000
        fetched.append(remote.bucket.traffic.bytes_read - before)
    # No rule can do better than to fetch what does not fit; dropping the oldest would fetch nearly everything again.
    assert fetched[0] == 40 * 100_000
    assert all(0.5 <= part / fetched[0] <= 0.75 for part in fetched[1:])


def test_small_images_do_not_bring_their_neighbours_where_room_is_short(store: Store, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    built = write_shard_set(tmp_path / "set", [noise.bytes(2500) for _ in range(300)], [i % 4 for i in range(300)])
    upload(built.folder, store.url)
    limit = 600_000
    remote = RemoteShardSet(store.url, CacheOptions(tmp_path / "cache", limit), QUICK)
    needed = np.random.default_rng(1).permutation(300).astype(np.uint32)
    remote.expect(lambda: needed)  # any numbers: the bytes per request are what matters here
    for epoch in range(3):
        before = remote.bucket.traffic.bytes_read
        for sample in np.random.default_rng(epoch).permutation(300).tolist():
            assert remote.encoded(sample).tobytes() == built.encoded(sample).tobytes()
        assert cache_bytes(tmp_path / "cache") <= limit * (1 + 1 / 64) + 64 * 1024
    assert remote.bucket.traffic.bytes_read - before < 300 * 2500  # not 64 KiB for each


def test_evicting_is_not_disturbed_by_what_others_fetch(remote: RemoteShardSet) -> None:
    over = threading.Event()

    def fetch_and_evict() -> None:
        while not over.is_set():
            remote.copy.present[:] = 1
            remote.copy.present[:] = 0

    other = threading.Thread(target=fetch_and_evict)
    other.start()
    try:
        for _ in range(2000):
            remote.copy._evict(np.zeros(len(remote), np.int64), 1)
    finally:
        over.set()
        other.join()


def test_with_a_plan_no_rule_could_fetch_less(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteShardSet, "samples_ahead", 2)
    monkeypatch.setattr(local_copy, "_LOOKED_AT", 1e-9)  # after each write
    monkeypatch.setattr(local_copy, "_EVICTED_TO", 1.0)
    built = large_set(tmp_path / "set")
    upload(built.folder, store.url)
    streams = (Stream("original", Shuffled(), (VIEW,)), Stream("foreground", ClassWeighted(), (VIEW,)))
    plan = Plan({"train": built}, streams, None, seed=3, global_batch_size=2, epochs=4)
    steps = [Position(epoch, step) for epoch in range(plan.epochs) for step in range(plan.steps_per_epoch)]
    reads = [sample for at in steps for name in plan.streams for sample in plan.sample_ids(name, *astuple(at)).tolist()]
    kept = 16
    remote = RemoteShardSet(store.url, CacheOptions(tmp_path / "cache", limit_bytes=kept * _ON_DISK), QUICK)
    before = remote.bucket.traffic.bytes_read
    upcoming = Upcoming(plan, steps[0], (0, 1))
    remote.expect(partial(upcoming.next_uses, "train"))
    position = iter(reads)
    for upcoming.now in steps:
        for sample in islice(position, 4):
            assert remote.encoded(sample).tobytes() == built.encoded(sample).tobytes()
    fetched = (remote.bucket.traffic.bytes_read - before) / 100_000
    # Beside what it keeps the copy has the sample that comes in. A step is one moment to it: the four samples of the
    # present one may be held although they were read.
    assert fewest_fetches(reads, kept + 1) <= fetched <= fewest_fetches(reads, kept - 4)
    by_age = last_used_first_out(reads, kept)
    assert fetched < 0.8 * by_age


def fewest_fetches(reads: list[int], places: int) -> int:
    """Belady: whenever a place is needed, that of the sample which is read again last of all is given up."""
    held: set[int] = set()
    fetches = 0
    for now, sample in enumerate(reads):
        if sample not in held:
            fetches += 1
            held.add(sample)
            if len(held) > places:
                coming = reads[now + 1 :]
                held.remove(max(held, key=lambda each: coming.index(each) if each in coming else len(coming)))
    return fetches


def last_used_first_out(reads: list[int], places: int) -> int:
    """LRU."""
    held: dict[int, None] = {}
    fetches = 0
    for sample in reads:
        fetches += sample not in held
        held.pop(sample, None)
        held[sample] = None
        if len(held) > places:
            held.pop(next(iter(held)))
    return fetches


def test_sets_that_nobody_has_open_go_first(store: Store, built: ShardSet, tmp_path: Path) -> None:
    upload(built.folder, f"{store.url}/old")
    large = large_set(tmp_path / "large")
    upload(large.folder, f"{store.url}/large")
    cache = tmp_path / "cache"
    script = f"""
import sys
import threading
from pathlib import Path
from shards.local_copy import CacheOptions
from shards.reader import ShardSet
old = ShardSet.open({store.url + "/old"!r}, CacheOptions(Path({str(cache)!r})))
[old.encoded(sample) for sample in range(len(old))]
print(old.folder)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, stdout=subprocess.PIPE, text=True, check=True)
    old = Path(done.stdout.strip())
    assert old.is_dir()
    remote = RemoteShardSet(f"{store.url}/large", CacheOptions(cache, 4_200_000), QUICK)
    assert_same_images(remote, large)
    assert not old.exists()
    assert remote.copy.present.sum() > 30


def test_a_full_disk_only_costs_requests(
    remote: RemoteShardSet, built: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local_copy.os, "pwrite", full)
    assert_same_images(remote, built)
    assert not remote.copy.present.any()


def test_several_processes_fetch_a_set_once(remote: RemoteShardSet, built: ShardSet, store: Store) -> None:
    script = f"""
import sys
import threading
from pathlib import Path
import numpy as np
from shards.local_copy import CacheOptions
from shards.reader import ShardSet
remote = ShardSet.open({store.url!r}, CacheOptions(Path({str(remote.folder.parent)!r})))
local = ShardSet.open({str(built.folder)!r})
rank = int(sys.argv[1])
for epoch in range(3):
    order = np.random.default_rng(epoch).permutation(len(local))
    remote.will_read(order[rank::2])
    for sample in order[rank::2].tolist():
        assert remote.encoded(sample).tobytes() == local.encoded(sample).tobytes()
"""
    before = store.line.body_bytes
    ranks = [subprocess.Popen([sys.executable, "-c", script, str(rank)]) for rank in range(2)]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    index = sum(file.bytes for file in built.info.files)
    whole = sum(shard.bytes for shard in built.info.shards)
    # both may ask for the same block at the same moment: it is not forbidden, only rare in sets larger than this one
    assert store.line.body_bytes - before < 2.2 * (whole + 3 * index)


def test_a_read_that_is_done_at_once_blocks_nobody(remote: RemoteShardSet, built: ShardSet) -> None:
    class Inline:
        def submit(self, function: Any, *arguments: Any) -> Future[None]:
            future: Future[None] = Future()
            function(*arguments)
            future.set_result(None)
            return future

    remote._pool = Inline()  # type: ignore[assignment]
    reader = threading.Thread(target=remote.will_read, args=(np.arange(len(built)),), daemon=True)
    reader.start()
    reader.join(20)
    assert not reader.is_alive()
    assert not remote._pending
    assert_same_images(remote, built)
