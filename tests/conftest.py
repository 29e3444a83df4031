"""Settings of the whole suite."""

import os

import torch


def pytest_configure() -> None:
    """Give each parallel worker cores of its own.

    Threads that wait for each other while spinning slow a test down ten times where workers share their cores;
    processes that a test starts inherit the share.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    cores = sorted(os.sched_getaffinity(0))
    number = int(worker.removeprefix("gw")) if worker else 0
    share = cores[number::workers] or cores
    os.sched_setaffinity(0, share)
    torch.set_num_threads(len(share))
