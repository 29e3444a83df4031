"""Running shard tasks: in this process, or in worker processes that die with it.

Not `concurrent.futures`: its workers share queues with locks, and one that is killed while it holds a lock, at the
wrong moment, leaves the others and the parent waiting for ever (seen once in 80 kills with Python 3.11). Here each
worker has a connection of its own, which ends with it.
"""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.context import SpawnProcess

from shards.shard_task import ShardTask, TaskSettings, run_shard_task
from shards.source import Fetcher, Source

_POLL_SECONDS = 0.2

Advance = Callable[[int, int], None]
Run = Callable[[Source, Sequence[ShardTask], TaskSettings, int, Advance], None]
"""Runs the tasks of a build: `run_tasks`, or another that keeps its promises."""


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
    shared = _Shared(context.RawArray("Q", len(tasks)), context.RawArray("Q", len(tasks)), context.RawValue("b", 0))
    slim = copy.copy(source)
    slim.samples = ()
    reporter = _Reporter(shared, advance)
    upcoming = iter(enumerate(tasks))
    started: list[tuple[SpawnProcess, Connection]] = []
    try:
        # Each worker's numpy would start one thread per core for linear algebra, of which a build has none.
        with _environment("OPENBLAS_NUM_THREADS", "1"):
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, slim, settings, shared), daemon=True)
                started.append((process, ours))
                process.start()
                theirs.close()  # so that the connection ends with the worker
        _hand_out(upcoming, [connection for _, connection in started], reporter)
    finally:
        shared.stop.value = 1
        for _, connection in started:  # all at once, as a process takes a while to end
            connection.close()
        for process, _ in started:
            if process.pid is not None:
                process.join()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable for the processes that are started inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _hand_out(upcoming: Iterator[tuple[int, ShardTask]], connections: list[Connection], reporter: _Reporter) -> None:
    """Keep every worker busy until all tasks are done. Raises the first error of a task."""
    busy: list[Connection] = []
    for connection, numbered in zip(connections, upcoming, strict=False):
        _send(connection, numbered)
        busy.append(connection)
    while busy:
        ready = wait_for_any(busy, timeout=_POLL_SECONDS)
        reporter.report()
        for connection in [one for one in busy if one in ready]:
            if (error := _answer(connection)) is not None:
                raise error
            if (following := next(upcoming, None)) is not None:
                _send(connection, following)
            else:
                busy.remove(connection)


def _send(connection: Connection, numbered: tuple[int, ShardTask]) -> None:
    try:
        connection.send(numbered)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _killed() from error


def _answer(connection: Connection) -> BaseException | None:
    """What became of a task: None, or its error."""
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError) as error:
        raise _killed() from error


def _killed() -> RuntimeError:
    return RuntimeError(
        "a worker process was killed (out of memory?); run the same command again to continue, "
        "with fewer --workers if it happens again"
    )


@dataclass(frozen=True)
class _Shared:
    """What workers and parent share: work done so far, one number per task, and the wish to stop (not 0).

    Without locks, as each number has one writer: a worker that is killed while it holds one stops all others for ever.
    """

    samples: ctypes.Array[ctypes.c_ulonglong]
    bytes: ctypes.Array[ctypes.c_ulonglong]
    stop: ctypes.c_byte


class _Reporter:
    """Turns the workers' running totals into calls of `advance`."""

    def __init__(self, shared: _Shared, advance: Advance) -> None:
        self._shared, self._advance = shared, advance
        self._samples = self._bytes = 0

    def report(self) -> None:
        samples, total_bytes = sum(self._shared.samples), sum(self._shared.bytes)
        self._advance(samples - self._samples, total_bytes - self._bytes)
        self._samples, self._bytes = samples, total_bytes


class _StoppedError(Exception):
    """Another task failed or the user interrupted; this one gives up."""


def _work(connection: Connection, source: Source, settings: TaskSettings, shared: _Shared) -> None:
    """A worker process: run the tasks that come, and answer each, until the parent hangs up."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent tells us to stop
    fetcher: Fetcher | None = None
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, task = connection.recv()
            try:
                fetcher = fetcher or source.open()
                run_shard_task(task, settings, fetcher, partial(_count, shared, number))
            except Exception as error:
                error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
                connection.send(error)
            else:
                connection.send(None)


def _count(shared: _Shared, task: int, samples: int, data_bytes: int) -> None:
    if shared.stop.value:
        raise _StoppedError
    shared.samples[task] += samples
    shared.bytes[task] += data_bytes


def _exit_with_parent() -> None:
    """End this process as soon as its parent is gone, even by SIGKILL: a worker may be far from its connection."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_any([parent.sentinel])
    os._exit(1)
