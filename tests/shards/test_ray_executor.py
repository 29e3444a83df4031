"""Shard tasks on a Ray cluster: same bytes, also when a node is killed; errors are those of the tasks."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shards.build import BuildOptions, build_shard_set
from shards.ray_executor import run_tasks_on_ray
from tests.helpers.making import FolderFetcher, FolderSource, folder_bytes, folder_source, pictures

ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra 'ray'")

ROOT = Path(__file__).parents[2]
SMALL = BuildOptions(samples_per_shard=4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs; each test adds nodes. This process has joined it."""
    os.environ["PYTHONPATH"] = str(ROOT)  # of the nodes' workers
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20}
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


class SlowFetcher(FolderFetcher):
    """Leaves a file per image, and takes its time."""

    def fetch(self, ref: Any) -> bytes:
        (self.root / f"{os.getpid()}.fetching").touch()
        time.sleep(0.05)
        return super().fetch(ref)


class SlowSource(FolderSource):
    def open(self) -> FolderFetcher:
        return SlowFetcher(self.root)


@pytest.mark.slow
def test_a_killed_node_loses_its_tasks_only(cluster: Any, tmp_path: Path) -> None:
    made = folder_source(tmp_path / "original", pictures(64))
    source = SlowSource(made.root, made.samples, made.class_names)
    build_shard_set(made, tmp_path / "local", SMALL)
    nodes = [add_node(cluster), add_node(cluster)]
    killed = threading.Thread(target=kill_when_both_work, args=(cluster, nodes[1], made.root))
    killed.start()
    done: list[tuple[int, int]] = []
    build_shard_set(source, tmp_path / "ray", SMALL, 0, Recorder(done), run=run_tasks_on_ray)
    killed.join()
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "local")
    assert sum(samples for samples, _ in done) == 64 and len(done) == 16
    cluster.remove_node(nodes[0])


def kill_when_both_work(cluster: Any, node: Any, root: Path) -> None:
    while len(list(root.glob("*.fetching"))) < 2:
        time.sleep(0.01)
    cluster.remove_node(node, allow_graceful=False)


class Recorder:
    def __init__(self, done: list[tuple[int, int]]) -> None:
        self.done = done

    def start(self, total: int, done: int) -> None: ...

    def advance(self, samples: int, data_bytes: int) -> None:
        self.done.append((samples, data_bytes))


def test_the_bytes_are_those_of_a_local_build(cluster: Any, tmp_path: Path) -> None:
    node = add_node(cluster)
    source = folder_source(tmp_path / "original", pictures(20))
    build_shard_set(source, tmp_path / "local", SMALL)
    build_shard_set(source, tmp_path / "ray", SMALL, 0, run=run_tasks_on_ray)
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "local")
    cluster.remove_node(node)


@pytest.mark.slow
def test_a_bad_image_stops_the_build_by_name_and_leaves_nothing_half_written(cluster: Any, tmp_path: Path) -> None:
    node = add_node(cluster)
    files = pictures(40)
    files["1/4.jpg"] = b"no image"
    source = folder_source(tmp_path / "original", files)
    with pytest.raises(ValueError, match=r"1/4\.jpg: .*; replace that file, or continue with --on-bad"):
        build_shard_set(source, tmp_path / "set", SMALL, 0, run=run_tasks_on_ray)
    assert not list((tmp_path / "set").glob("*.tmp"))
    cluster.remove_node(node)


def test_no_cluster_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def unreachable(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", unreachable)
    run = partial(run_tasks_on_ray, address="127.0.0.1:1")
    with pytest.raises(
        RuntimeError, match=r"no Ray cluster at 127\.0\.0\.1:1: nobody there; start one with: ray start"
    ):
        run(None, [None], None, 0, None)  # type: ignore[arg-type, list-item]
