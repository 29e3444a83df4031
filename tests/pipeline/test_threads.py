"""A pool's threads compute alone, and nobody else does for that reason."""

import subprocess
import sys

PROGRAM = """
import threading, torch
from pipeline.executors.threads import one_thread_each

with one_thread_each(2, "alone") as pool:
    together = threading.Barrier(2)
    print(*pool.map(lambda _: (together.wait(), torch.get_num_threads())[1], range(2)))
    print(torch.get_num_threads())
    thread = threading.Thread(target=lambda: print(torch.get_num_threads()))
    thread.start()
    thread.join()
"""


def test_only_threads_of_the_pool_compute_alone() -> None:
    [team] = output_of("import torch; print(torch.get_num_threads())")
    assert output_of(PROGRAM) == ["1", "1", team, team]


def output_of(program: str) -> list[str]:
    """In a new process: in this one torch has computed, and its threads know how many others help them."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
