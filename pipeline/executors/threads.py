"""Threads that share torch's work on the CPU image by image, instead of inside every operation."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def one_thread_each(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads run torch's operations each by itself; torch releases the interpreter while it computes.

    torch's own team of threads meets after every operation. Where decoders want the same cores, the team then waits
    for whichever of its threads the system has put off, and cores stand idle. All other threads keep their teams.
    """
    team = torch.get_num_threads()  # and so this thread has settled its own
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_work_alone, initargs=(team,))


def _work_alone(team_of_others: int) -> None:
    torch.get_num_threads()  # a thread settles its number when it first asks or computes: not after the next line
    torch.set_num_threads(1)
    # Threads that settle theirs from now on would take this one too. Another thread puts theirs back, and leaves ours.
    other = threading.Thread(target=torch.set_num_threads, args=(team_of_others,))
    other.start()
    other.join()
