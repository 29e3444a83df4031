"""`python -m tests.faults.ray_build ARCHIVE.zip`: a build on two raylets, one of them killed, against a local build.

Prints the seconds of a build by one and by two processes of the pool, by one and by two raylets, and by two of which
one is killed when a third of the shards is done; and whether all bytes are equal. The archive has train/CLASS/IMAGE.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.build import BuildOptions, build_shard_set
from shards.pool import Run, run_tasks
from shards.ray_executor import run_tasks_on_ray
from shards.source import Source
from tests.helpers.making import folder_bytes
from tools.build_shards import _parser
from tools.sources import SOURCES

OPTIONS = BuildOptions(samples_per_shard=1000)
_NODE = {"num_cpus": 1, "object_store_memory": 200 * 2**20}


def main() -> int:
    """Run all builds; 1 where bytes differ."""
    os.environ |= {"PYTHONPATH": str(Path(__file__).parents[2]), "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "num_cpus": 0})
    ray.init(address=cluster.address, log_to_driver=False)
    equal = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = _source(sys.argv[1], folder)
        for workers in (1, 2):
            _timed(f"pool, {workers} processes", source, folder / f"pool{workers}", workers, run_tasks)
        expected = folder_bytes(folder / "pool1")
        nodes = [cluster.add_node(**_NODE)]
        _timed("Ray, 1 raylet", source, folder / "ray1", 0, run_tasks_on_ray)
        nodes.append(cluster.add_node(**_NODE))
        _timed("Ray, 2 raylets", source, folder / "ray2", 0, run_tasks_on_ray)
        out = folder / "killed"

        def kill() -> None:
            cluster.remove_node(nodes[1], allow_graceful=False)

        thread = threading.Thread(target=_after_shards, args=(out, 17, kill))
        thread.start()
        _timed("Ray, 2 raylets, 1 killed", source, out, 0, run_tasks_on_ray)
        thread.join()
        for name in ("pool2", "ray1", "ray2", "killed"):
            same = folder_bytes(folder / name) == expected
            equal &= same
            print(f"{name}: {'bytes equal' if same else 'BYTES DIFFER'}")
    ray.shutdown()
    cluster.shutdown()
    return int(not equal)


def _source(archive: str, folder: Path) -> Source:
    command = ["imagefolder", "--images", archive, "--split-dir", "train", "--out", str(folder / "unused")]
    namespace = _parser().parse_args([*command, "--allow-partial"])
    return SOURCES["imagefolder"].from_args(namespace)[""]


def _timed(name: str, source: Source, out: Path, workers: int, run: Run) -> None:
    started = time.monotonic()
    info = build_shard_set(source, out, OPTIONS, workers, run=run)
    print(f"{name}: {info.num_samples} images, {time.monotonic() - started:.1f} s", flush=True)


def _after_shards(out: Path, shards: int, then: Callable[[], Any]) -> None:
    while len(list(out.glob("*.part.json"))) < shards:
        time.sleep(0.02)
    then()


if __name__ == "__main__":
    sys.exit(main())
