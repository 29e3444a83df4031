"""Training from a bucket is training from disk: same samples, same weights, also when it is killed on the way."""

import os
from pathlib import Path
from typing import Any

import pytest

from shards.local_copy import CacheOptions
from shards.reader import ShardSet
from tests.helpers.processes import sample_ids, start, wait_for_steps
from tests.helpers.runs import arguments, make_data
from tests.helpers.s3 import upload
from tests.helpers.trainings import different, outcome
from tests.stores.conftest import Store


@pytest.fixture(scope="module")
def from_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run and its data."""
    folder = tmp_path_factory.mktemp("disk")
    data = make_data(folder / "data")
    assert train(folder, data / "train", data / "test").wait() == [0]
    return folder


def train(folder: Path, train_set: object, test_set: object, **changes: object) -> Any:
    options = {"checkpoint_every_steps": 2, "resume": "auto", "deterministic": "true", "data.executor": "dali"}
    paths = {"data.train": train_set, "data.test": test_set}
    command = arguments(folder / "data", folder / "run", **{**options, **paths, **changes})
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return start(command, folder / "log", ids=folder / "ids", variables=variables)


def test_a_killed_and_resumed_run_from_a_bucket_equals_one_from_disk(
    from_disk: Path, store: Store, tmp_path: Path
) -> None:
    for name in ("train", "test"):
        upload(from_disk / "data" / name, f"{store.url}/{name}")
    store.line.latency_seconds = 0.01
    store.line.faults, store.line.fault_rate = ("status 503", "cut", "bit flip", "short"), 0.1
    urls = (f"{store.url}/train", f"{store.url}/test")
    cache = {"data.cache": tmp_path / "cache"}
    killed = train(tmp_path, *urls, **cache)
    wait_for_steps(tmp_path / "run", 5)
    killed.signal(9)
    assert killed.wait() == [-9]
    finished = train(tmp_path, *urls, **cache)
    assert finished.wait() == [0], finished.output()
    assert not different(outcome(from_disk / "run"), outcome(tmp_path / "run"))
    steps = {(epoch, step): ids for epoch, step, ids in sample_ids(tmp_path / "ids")}
    assert steps == {(epoch, step): ids for epoch, step, ids in sample_ids(from_disk / "ids")}


@pytest.mark.slow
def test_a_store_that_fails_ends_the_run_with_its_name_and_the_same_command_continues(
    from_disk: Path, store: Store, tmp_path: Path
) -> None:
    upload(from_disk / "data" / "train", f"{store.url}/train")
    cache = CacheOptions(tmp_path / "cache")
    assert len(ShardSet.open(f"{store.url}/train", cache)) == 27  # so that the index is here
    store.line.faults, store.line.fault_rate = ("status 403",), 1.0
    sets = (f"{store.url}/train", from_disk / "data" / "test")
    failed = train(tmp_path, *sets, **{"data.cache": cache.folder})
    assert failed.wait() == [1]
    assert f"error: {store.url}/" in failed.output() and "check the URL, the credentials" in failed.output()
    assert "Traceback" not in failed.output()
    store.line.fault_rate = 0.0
    assert train(tmp_path, *sets, **{"data.cache": cache.folder}).wait() == [0]
    assert not different(outcome(from_disk / "run"), outcome(tmp_path / "run"))
