"""Shard sets in a store against the same sets on disk: the figures of docs/scaling.md.

    python -m tests.faults.stores kills  --train DIR --test DIR --kills 20 -- OPTIONS OF python -m train
    python -m tests.faults.stores timing --train DIR --test DIR -- OPTIONS OF python -m train
    python -m tests.faults.stores reads  --train DIR --faults 10000
    python -m tests.faults.stores limit  --train DIR

Each starts moto's S3 server on the loopback address, with a proxy in front that makes the faults.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.plan import Plan, Position, Stream
from pipeline.sampling import ClassWeighted, Shuffled
from pipeline.upcoming import Upcoming
from pipeline.views.view import View, Whole
from shards.local_copy import CacheOptions
from shards.object_store import Bucket, Patience, StoreError
from shards.reader import CorruptSampleError, ShardSet
from shards.remote_set import RemoteShardSet
from tests.helpers.fault_proxy import FAULTS, Behaviour, proxy
from tests.helpers.processes import Training, start
from tests.helpers.s3 import BUCKET, environment, exported, s3_server, upload
from tests.helpers.trainings import different, outcome

LATENCY_SECONDS, BYTES_PER_SECOND = 0.05, 200e6
_LIMIT_BATCH, _LIMIT_EPOCHS = 8, 5
_URL = f"s3://{BUCKET}/set"
_HASTY = Patience(first_pause_seconds=0.01, longest_pause_seconds=0.2, timeout_seconds=0.6)


@dataclass(frozen=True)
class Bench:
    """A server that holds the sets. folder: for runs and caches. line: the proxy. endpoint: its address."""

    folder: Path
    line: Behaviour
    endpoint: str

    def train(self, name: str, paths: tuple[object, object], options: list[str]) -> Training:
        """Start a training whose run folder has this name."""
        own = ["--data.train", str(paths[0]), "--data.test", str(paths[1]), "--run_dir", str(self.folder / name)]
        own += ["--data.cache", str(self.folder / "cache"), "--trackers", "[]", "--deterministic", "true"]
        own += ["--device", "cpu", "--resume", "auto", "--log_every_steps", "1"]
        return start([*options, *own], self.folder / f"{name}.log", variables=environment(self.endpoint))


@contextmanager
def bench(sets: dict[str, Path]) -> Iterator[Bench]:
    """Sets by their name in the store."""
    # For the processes that import torch later: threads that spin while they wait starve the server beside them.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    line = Behaviour()
    with tempfile.TemporaryDirectory() as folder, s3_server() as server, proxy(server, line) as endpoint:
        with exported(environment(server)):
            for name, path in sets.items():
                upload(path, f"{_URL}/{name}")
        with exported(environment(endpoint)):
            yield Bench(Path(folder), line, endpoint)


def kills(options: argparse.Namespace) -> int:
    """Kill a training from the store again and again in its first epoch; compare its end with one from disk."""
    rng = random.Random(options.seed)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one thread each: see tests.faults
    with bench({"train": options.train, "test": options.test}) as at:
        training = [*options.training, "--checkpoint_every_steps", "1"]
        straight = at.train("disk", (options.train, options.test), training)
        assert straight.wait(3600) == [0], straight.output()
        at.line.latency_seconds = LATENCY_SECONDS
        at.line.fault_rate, at.line.faults = options.rate, tuple(fault for fault in FAULTS if fault != "stall")
        urls, killed = (f"{_URL}/train", f"{_URL}/test"), 0
        for _ in range(options.kills):
            run = at.train("store", urls, training)
            killed += _kill_after_steps(run, at.folder / "store" / "metrics.jsonl", rng, options.advance)
        run = at.train("store", urls, training)
        codes = run.wait(3600)
        differences = different(outcome(at.folder / "disk"), outcome(at.folder / "store")) if codes == [0] else []
        steps = sum('"loss"' in line for line in (at.folder / "store" / "metrics.jsonl").read_text().splitlines())
        print(f"{killed} kills, exit {codes}, {steps} lines of steps, {len(differences)} differences")
        print(f"faults made: {dict(at.line.made)}; {_fetched(at, options)}")
        print(*differences, *([] if codes == [0] else [run.output()[-3000:]]), sep="\n")
    return int(bool(differences) or codes != [0])


def _kill_after_steps(run: Training, metrics: Path, rng: random.Random, advance: int) -> int:
    """Kill a run some steps after it began, or while it begins; whether it was killed."""
    steps, delay, size = rng.randint(0, advance), rng.random() * 0.3, None
    deadline = time.monotonic() + (rng.random() * 8 if steps == 0 else 600)
    while run.alive and steps >= 0 and time.monotonic() < deadline:
        found = metrics.stat().st_size if metrics.exists() else 0
        if steps > 0 and size is not None and found > size:
            steps -= 1
        if steps == 0 and size is not None and deadline - time.monotonic() > 60:
            break
        size = found
        time.sleep(0.005)
    time.sleep(delay)
    run.signal(9)
    return int(run.wait(60) == [-9])


def timing(options: argparse.Namespace) -> int:
    """Train from disk and from a throttled store; print what the training waited for in each epoch."""
    with bench({"train": options.train, "test": options.test}) as at:
        at.line.latency_seconds, at.line.bytes_per_second = LATENCY_SECONDS, BYTES_PER_SECOND
        urls = (f"{_URL}/train", f"{_URL}/test")
        for name, paths in (("disk", (options.train, options.test)), ("store", urls)):
            run = at.train(name, paths, options.training)
            assert run.wait(3600) == [0], run.output()
            for line in (at.folder / name / "metrics.jsonl").read_text().splitlines():
                record = json.loads(line)
                if "data_wait_share" in record:
                    rate, share = record["images_per_second"], record["data_wait_share"]
                    print(f"{name}: epoch {record['epoch']}: {rate:.0f} images/s, data wait {100 * share:.1f} %")
        print(_fetched(at, options))
        print(f"differences: {different(outcome(at.folder / 'disk'), outcome(at.folder / 'store'))}")
    return 0


def _fetched(at: Bench, options: argparse.Namespace) -> str:
    whole = sum(path.stat().st_size for folder in (options.train, options.test) for path in folder.glob("*.tar"))
    return f"{at.line.requests} requests, {at.line.body_bytes:,} bytes, {at.line.body_bytes / whole:.3f} of the tars"


def reads(options: argparse.Namespace) -> int:
    """Read the set from a store that fails and lies, until so many faults were made; compare each image."""
    rng = random.Random(options.seed)
    local, found = ShardSet.open(options.train), Counter[str]()
    started, number = time.monotonic(), 0
    with bench({"train": options.train}) as at:
        while sum(at.line.made.values()) + found["objects replaced"] + found["objects deleted"] < options.faults:
            at.line.fault_rate = options.rate
            spoiler = Spoiler(at, local, rng) if number % 5 == 4 else None
            end, images = _read_all(at, local, rng, number)
            done = spoiler.undone() if spoiler else ""
            found.update(images)
            found[f"{end}{f', an object being {done} meanwhile' if done else ''}"] += 1
            if done:
                found[f"objects {done}"] += 1
            number += 1
            if number % 10 == 0:
                print(f"{number} rounds, {sum(at.line.made.values())} faults, {dict(found)}", flush=True)
        made = dict(sorted(at.line.made.items()))
        print(f"{number} rounds, {at.line.requests} requests, {time.monotonic() - started:.0f} s")
    print(f"faults made on the line: {sum(made.values())}: {made}")
    print(*(f"{count:8} {what}" for what, count in sorted(found.items())), sep="\n")
    return int(found["WRONG images"] > 0)


class Spoiler:
    """Replaces a shard by other bytes of the same size, or deletes it, some requests after now."""

    def __init__(self, at: Bench, local: ShardSet, rng: random.Random) -> None:
        self._at, self._local = at, local
        self._shard, self._what = rng.choice(local.info.shards), rng.choice(("replaced", "deleted"))
        self._other_bytes = np.random.default_rng(rng.getrandbits(32)).bytes(self._shard.bytes)
        self._done, self._over, self._lock = False, False, threading.Lock()
        at.line.on_next_requests(rng.randrange(8, 60), self._change)

    def _change(self) -> None:
        with self._lock:
            if self._over:
                return
            bucket = Bucket(f"{_URL}/train")
            if self._what == "deleted":
                bucket.delete([self._shard.file])
            else:
                bucket.write(self._shard.file, self._other_bytes)
            self._done = True

    def undone(self) -> str:
        """Puts the shard back; says what had happened to it, or "" if it was too late for that."""
        self._at.line.fault_rate = 0.0
        with self._lock:
            self._over = True
            if self._done:
                Bucket(f"{_URL}/train").write(self._shard.file, self._local.folder / self._shard.file)
        return self._what if self._done else ""


def _read_all(at: Bench, local: ShardSet, rng: random.Random, number: int) -> tuple[str, Counter[str]]:
    """Open the set with an empty cache and read it in a drawn order, until it is through or an error names a fault."""
    found: Counter[str] = Counter()
    try:
        remote = RemoteShardSet(f"{_URL}/train", CacheOptions(at.folder / f"cache{number}"), _HASTY)
        order = np.random.default_rng(rng.getrandbits(32)).permutation(len(local))
        for first in range(0, len(order), 64):
            remote.will_read(order[first : first + 256])
            for sample in order[first : first + 64].tolist():
                same = remote.encoded(sample).tobytes() == local.encoded(sample).tobytes()
                found["exact images" if same else "WRONG images"] += 1
    except (StoreError, CorruptSampleError, FileNotFoundError, ValueError) as error:
        assert _URL in str(error), error
        return f"rounds ended by {type(error).__name__}, which names the object", found
    return "rounds that were complete", found


def limit(options: argparse.Namespace) -> int:
    """Read epochs in the order of a plan with a local copy of half the set; print what each epoch fetched, in sets."""
    local = ShardSet.open(options.train)
    whole = sum(shard.bytes for shard in local.info.shards)
    view = View(Whole(32))
    shuffled, weighted = Stream("original", Shuffled(), (view,)), Stream("foreground", ClassWeighted(), (view,))
    with bench({"train": options.train}) as at:
        for streams in ((shuffled,), (shuffled, weighted)):
            plan = Plan({"train": local}, streams, None, options.seed, _LIMIT_BATCH, _LIMIT_EPOCHS)
            for rule in ("plan", "last read first", "read longest ago first (LRU)"):
                cache = CacheOptions(at.folder / f"{rule}{len(streams)}", whole // 2)
                remote = RemoteShardSet(f"{_URL}/train", cache)
                remote.samples_ahead = 2 * _LIMIT_BATCH * len(streams)
                shares = [fetched / whole for fetched in _epochs(remote, plan, rule)]
                names = " and ".join(stream.name for stream in streams)
                print(f"{names}, {rule}: {', '.join(f'{share:.2f}' for share in shares)}", flush=True)
    return 0


def _epochs(remote: RemoteShardSet, plan: Plan, rule: str) -> Iterator[int]:
    """Bytes fetched in each epoch of a plan's reads, begun two steps ahead, while the copy is evicted by a rule."""
    upcoming, used_at = Upcoming(plan, Position(0, 0), (0, 1)), np.zeros(len(remote), np.uint32)
    if rule == "plan":
        remote.expect(lambda: upcoming.next_uses("train"))
    elif rule != "last read first":
        remote.expect(lambda: np.uint32(plan.steps_per_epoch * plan.epochs) - used_at)
    steps = list(plan.positions(Position(0, 0), Position(plan.epochs, 0)))
    ids = [np.concatenate([plan.sample_ids(name, at.epoch, at.step) for name in plan.streams]) for at in steps]
    before = remote.bucket.traffic.bytes_read
    for number, upcoming.now in enumerate(steps):
        for coming in ids[number : number + 3]:
            used_at[coming] = number  # to be asked for counts as a use: LRU would drop it before it is read
            remote.will_read(coming)
        for sample in ids[number].tolist():
            remote.check_sample(sample)
        if upcoming.now.step == plan.steps_per_epoch - 1:
            yield remote.bucket.traffic.bytes_read - before
            before = remote.bucket.traffic.bytes_read


def main() -> int:
    """Run one of them."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.stores", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("what", choices=("kills", "timing", "reads", "limit"))
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--advance", type=int, default=2, help="a run is killed after at most this many steps")
    parser.add_argument("--rate", type=float, default=0.3, help="share of requests that fail")
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    own, _, training = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.split())
    options.training = training.split()
    return {"kills": kills, "timing": timing, "reads": reads, "limit": limit}[options.what](options)


if __name__ == "__main__":
    sys.exit(main())
