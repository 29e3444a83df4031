import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.executors import readahead
from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.readahead import ReadAhead
from pipeline.plan import StreamPlan
from pipeline.views.view import View, Whole
from shards.reader import ShardSet
from tests.helpers.executors import plan_batches
from tests.helpers.shard_sets import photos


@pytest.fixture(scope="module")
def photo_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return photos(tmp_path_factory.mktemp("sets") / "photos", (20, 12))


def start(dataset: Any, requests: Any) -> ReadAhead:
    return ReadAhead(iter(requests), dataset, BadSamples(dataset, budget=0))


def test_requests_come_in_order_and_then_the_end(photo_set: ShardSet) -> None:
    requests = plan_batches(photo_set, (View(Whole(32)),), [[i] for i in range(32)])
    ahead = start(photo_set, requests)
    assert list(ahead) == requests
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


def test_the_kernel_is_told_the_bytes_of_later_requests(photo_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: told.append(arguments[1:]))
    requests = plan_batches(photo_set, (View(Whole(32)),), [[i] for i in range(32)])
    ahead = start(photo_set, requests)
    for number, request in enumerate(ahead):
        assert request is requests[number]
        # Before a request is passed on, those after it have been advised.
        assert len(told) >= min(number + 1 + readahead._ADVISED_AHEAD, 32)
    ahead.close()
    records = photo_set.index[:32]
    expected = [(int(r["offset"]), int(r["size"]), os.POSIX_FADV_WILLNEED) for r in records]
    assert told == expected


def test_it_runs_ahead_but_not_away(photo_set: ShardSet) -> None:
    taken = itertools.count()
    position = 0

    def endless() -> Iterator[StreamPlan]:
        nonlocal position
        while True:
            position = next(taken)
            yield request

    [request] = plan_batches(photo_set, (View(Whole(32)),), [[3]])
    ahead = start(photo_set, endless())
    next(ahead)
    time.sleep(0.2)
    assert position <= 2 + readahead._ADVISED_AHEAD + readahead._READY_AHEAD
    ahead.close()
    ahead.close()


def test_the_checksum_of_a_sample_is_computed_once(photo_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = Counter()
    check = ShardSet.check_sample
    monkeypatch.setattr(
        ShardSet, "check_sample", lambda self, sample: (checked.update([sample]), check(self, sample))[1]
    )
    requests = plan_batches(photo_set, (View(Whole(32)),), [range(10), range(10), [2, 2, 15]])
    ahead = start(photo_set, requests)
    assert len(list(ahead)) == 3
    ahead.close()
    assert checked == Counter([*range(10), 15])
