"""A pool's threads compute alone, and nobody else does for that reason."""

import subprocess
import sys

PROGRAM = """
import threading, torch
from pipeline.threads import one_thread_each

with one_thread_each(2, "alone") as pool:
    together = threading.Barrier(2)
    print(*pool.map(lambda _: (together.wait(), torch.get_num_threads())[1], range(2)))
    print(torch.get_num_threads())
    thread = threading.Thread(target=lambda: print(torch.get_num_threads()))
    thread.start()
    thread.join()
"""


def test_only_threads_of_the_pool_compute_alone():
    # In a new process: here torch has computed, and each thread has settled how many others help it.
    environment = {"PATH": "", "OMP_NUM_THREADS": "2"}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "1", "2", "2"]
