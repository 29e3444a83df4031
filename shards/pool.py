"""Running shard tasks: in this process, or in worker processes that die with it.

Not `concurrent.futures`: its workers share queues with locks, and a worker killed while holding a lock can leave the
others and the parent waiting for ever (seen once in 80 kills with Python 3.11). Here each worker has its own
connection, which closes when the worker dies.
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
"""Runs the tasks of a build: `run_tasks`, or another function with the same contract."""


def run_tasks(
    source: Source, tasks: Sequence[ShardTask], settings: TaskSettings, workers: int, advance: Advance
) -> None:
    """Run all tasks. `advance(samples, bytes)` is called in this process, at intervals, as work progresses.

    The first task error stops the other tasks, which leave nothing half-written, and is raised here.
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
    # Spawned, not forked: the caller may have threads. Hence a source without samples: each task carries its own.
    context = multiprocessing.get_context("spawn")
    shared = _Shared(context.RawArray("Q", len(tasks)), context.RawArray("Q", len(tasks)), context.RawValue("b", 0))
    slim = copy.copy(source)
    slim.samples = ()
    reporter = _Reporter(shared, advance)
    upcoming = iter(enumerate(tasks))
    started: list[tuple[SpawnProcess, Connection]] = []
    try:
        # Otherwise each worker's numpy starts one thread per core for linear algebra, which a build does not use.
        with _environment("OPENBLAS_NUM_THREADS", "1"):
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, slim, settings, shared), daemon=True)
                started.append((process, ours))
                process.start()
                theirs.close()  # the connection then closes when the worker dies
        _hand_out(upcoming, [connection for _, connection in started], reporter)
    finally:
        shared.stop.value = 1
        for _, connection in started:  # all at once, because processes take a while to exit
            connection.close()
        for process, _ in started:
            if process.pid is not None:
                process.join()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for processes started inside the block."""
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
    """The result of a task: None, or its error."""
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
    """State shared by workers and parent: work done so far, one number per task, and a stop flag (non-zero).

    Without locks, because each number has one writer: a worker killed while holding a lock would block all others.
    """

    samples: ctypes.Array[ctypes.c_ulonglong]
    bytes: ctypes.Array[ctypes.c_ulonglong]
    stop: ctypes.c_byte


class _Reporter:
    """Converts the workers' running totals into calls of `advance`."""

    def __init__(self, shared: _Shared, advance: Advance) -> None:
        self._shared, self._advance = shared, advance
        self._samples = self._bytes = 0

    def report(self) -> None:
        samples, total_bytes = sum(self._shared.samples), sum(self._shared.bytes)
        self._advance(samples - self._samples, total_bytes - self._bytes)
        self._samples, self._bytes = samples, total_bytes


class _StoppedError(Exception):
    """Another task failed or the user interrupted; this task stops."""


def _work(connection: Connection, source: Source, settings: TaskSettings, shared: _Shared) -> None:
    """A worker process: run the tasks it receives and reply to each, until the parent closes the connection."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops us
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
    """Kill this process when its parent dies, even by SIGKILL: a worker may not check its connection for long."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_any([parent.sentinel])
    os._exit(1)
