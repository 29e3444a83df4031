"""Running shard tasks: in this process, or in a pool of worker processes that die with it."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_sentinel
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import ClassVar

from shards.shard_task import ShardTask, TaskSettings, run_shard_task
from shards.source import Fetcher, Source

_POLL_SECONDS = 0.2

Advance = Callable[[int, int], None]


def run_tasks(
    source: Source, tasks: Sequence[ShardTask], settings: TaskSettings, workers: int, advance: Advance
) -> None:
    """Run all tasks. `advance(samples, bytes)` is called in this process, now and then, as work gets done.

    The first error of a task stops the others, which leave nothing half-written, and is raised here.
    """
    if workers == 1 or len(tasks) == 1:
        _run_here(source, tasks, settings, advance)
    elif tasks:
        _run_in_processes(source, tasks, settings, min(workers, len(tasks)), advance)


def _run_here(source: Source, tasks: Sequence[ShardTask], settings: TaskSettings, advance: Advance) -> None:
    fetcher = source.open()
    try:
        for task in tasks:
            run_shard_task(task, settings, fetcher, advance)
    finally:
        fetcher.close()


def _run_in_processes(
    source: Source, tasks: Sequence[ShardTask], settings: TaskSettings, workers: int, advance: Advance
) -> None:
    # Spawned, not forked: the caller may have threads. Hence the slim copy of the source: each task brings its samples.
    context = multiprocessing.get_context("spawn")
    shared = _Shared(context.Value("Q", 0), context.Value("Q", 0), context.Event())
    slim = copy.copy(source)
    slim.samples = ()
    reporter = _Reporter(shared, advance)
    with ProcessPoolExecutor(workers, context, _Worker.start, (slim, settings, shared)) as pool:
        try:
            futures = [pool.submit(_Worker.run, task) for task in tasks]
            _wait_for(futures, reporter)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed (out of memory?); run the same command again to continue, "
                "with fewer --workers if it happens again"
            ) from error
        finally:
            shared.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(futures: list[Future[None]], reporter: _Reporter) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        reporter.report()
        for future in done:
            future.result()


@dataclass(frozen=True)
class _Shared:
    """What workers and parent share: work done so far, and the wish to stop."""

    samples: Synchronized[int]
    bytes: Synchronized[int]
    stop: Event


class _Reporter:
    """Turns the workers' running totals into calls of `advance`."""

    def __init__(self, shared: _Shared, advance: Advance) -> None:
        self._shared, self._advance = shared, advance
        self._samples = self._bytes = 0

    def report(self) -> None:
        samples, total_bytes = self._shared.samples.value, self._shared.bytes.value
        self._advance(samples - self._samples, total_bytes - self._bytes)
        self._samples, self._bytes = samples, total_bytes


class _StoppedError(Exception):
    """Another task failed or the user interrupted; this one gives up."""


class _Worker:
    """The state of a worker process, made by `start` when the process begins."""

    source: ClassVar[Source]
    fetcher: ClassVar[Fetcher | None] = None
    settings: ClassVar[TaskSettings]
    shared: ClassVar[_Shared]

    @classmethod
    def start(cls, source: Source, settings: TaskSettings, shared: _Shared) -> None:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent tells us to stop
        cls.source, cls.settings, cls.shared = source, settings, shared

    @classmethod
    def run(cls, task: ShardTask) -> None:
        if cls.fetcher is None:  # opened here, not in `start`, so that its errors reach the parent
            cls.fetcher = cls.source.open()
        run_shard_task(task, cls.settings, cls.fetcher, cls._advance)

    @classmethod
    def _advance(cls, samples: int, data_bytes: int) -> None:
        if cls.shared.stop.is_set():
            raise _StoppedError
        with cls.shared.samples:
            cls.shared.samples.value += samples
        with cls.shared.bytes:
            cls.shared.bytes.value += data_bytes


def _exit_with_parent() -> None:
    """End this process as soon as its parent is gone, even by SIGKILL: the pool's queues alone would block forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_sentinel([parent.sentinel])
    os._exit(1)
