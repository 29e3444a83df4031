"""Running shard tasks on a Ray cluster. If a node dies, its tasks run again on another node.

Each node needs this project installed and must reach the source's files and the output (a shared folder, or a store)
under the same names as this machine.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from shards.images import library_versions
from shards.pool import Advance
from shards.shard_task import ShardTask, TaskSettings, run_shard_task
from shards.source import Fetcher, Source
from shards.store_upload import staging_folder

logger = logging.getLogger(__name__)

_DEATHS = 10  # deaths of nodes or workers that a task survives; one that always kills its worker fails the build
_HANDED_OUT = 2  # tasks per CPU, so that no CPU waits for this process
_STOP_SECONDS = 30

_opened: tuple[bytes, Fetcher] | None = None  # in a cluster worker: the source that it last read


def run_tasks_on_ray(
    source: Source,
    tasks: Sequence[ShardTask],
    settings: TaskSettings,
    workers: int,
    advance: Advance,
    address: str | None = None,
) -> None:
    """Run all tasks, as `shards.pool.run_tasks` does; `advance` is called as shards are completed.

    workers: tasks at a time; 0 for the number of CPUs in the cluster.
    address: the cluster's address; None for RAY_ADDRESS, "local" for a cluster on this machine.

    Raises the first task error, and RuntimeError if Ray is not installed or the cluster cannot be reached.
    """
    ray = _import_ray()
    if not tasks:
        return
    joined = _connect(ray, address)
    try:
        _run_all(ray, source, tasks, settings, workers, advance)
    finally:
        if joined:
            ray.shutdown()


def _run_all(
    ray: Any, source: Source, tasks: Sequence[ShardTask], settings: TaskSettings, workers: int, advance: Advance
) -> None:
    settings = replace(settings, folder=settings.folder.absolute())
    slim = copy.copy(source)
    slim.samples = ()  # each task carries its own
    shared = ray.put(slim)
    remote = ray.remote(num_cpus=1, max_retries=_DEATHS, retry_exceptions=False)(_run_task)
    upcoming = iter(tasks)
    running: list[Any] = []
    try:
        while True:
            # Queried each time: nodes come and go.
            wanted = workers or max(1, int(ray.cluster_resources().get("CPU", 1))) * _HANDED_OUT
            for task in islice(upcoming, max(0, wanted - len(running))):
                running.append(
                    remote.remote(_Job(shared.binary(), settings, Path.cwd(), library_versions()), shared, task)
                )
            if not running:
                return
            [done], running = ray.wait(running)
            advance(*_result(ray, done))
    finally:
        for task in running:  # another task failed, or the user interrupted: they clean up, then stop
            ray.cancel(task, force=False)
        if running:
            ray.wait(running, num_returns=len(running), timeout=_STOP_SECONDS)


def _result(ray: Any, done: Any) -> tuple[int, int]:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError) as error:
        raise RuntimeError(
            f"a shard task was lost {_DEATHS + 1} times with its worker or node (out of memory?): {error}; "
            "run the same command again to continue"
        ) from error


@dataclass(frozen=True)
class _Job:
    """What all tasks of a build share, except the source itself, which a worker keeps open by its id."""

    source_id: bytes
    settings: TaskSettings
    working_folder: Path  # relative names in the source refer to it
    versions: dict[str, str]


def _run_task(job: _Job, source: Source, task: ShardTask) -> tuple[int, int]:
    """In a cluster worker: write one shard. Returns its number of samples and their bytes in the source."""
    global _opened
    if (found := library_versions()) != job.versions:
        raise RuntimeError(f"a node has {found}, the build was started with {job.versions}; install the same versions")
    os.chdir(job.working_folder)
    settings = job.settings
    if settings.upload_to is not None:
        settings = replace(settings, folder=staging_folder(settings.upload_to))  # local to this node
        settings.folder.mkdir(parents=True, exist_ok=True)
    if _opened is None or _opened[0] != job.source_id:
        if _opened is not None:
            _opened[1].close()
        _opened = (job.source_id, source.open())
    total = [0, 0]

    def count(samples: int, data_bytes: int) -> None:
        total[0] += samples
        total[1] += data_bytes

    run_shard_task(task, settings, _opened[1], count)
    return total[0], total[1]


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise RuntimeError("--executor ray needs the extra 'ray': pip install 'longtail[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None) -> bool:
    """Join the cluster; False if this process has already joined one."""
    if ray.is_initialized():
        return False
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = address or "the address in RAY_ADDRESS"
        raise RuntimeError(f"no Ray cluster at {where}: {error}; start one with: ray start --head") from error
    return True
