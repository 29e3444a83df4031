"""Threads that split torch's CPU work by image instead of inside every operation."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def one_thread_each(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads each run torch operations single-threaded; torch releases the GIL while it computes.

    torch's own thread team synchronises after every operation. If decoders compete for the same cores, the team waits
    for whichever thread the system has descheduled, and cores idle. All other threads keep their teams.
    """
    team = torch.get_num_threads()  # this also fixes the number of this thread
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_work_alone, initargs=(team,))


def _work_alone(team_of_others: int) -> None:
    torch.get_num_threads()  # a thread fixes its number on first query or use: must happen before the next line
    torch.set_num_threads(1)
    # New threads would now inherit this number. Another thread restores theirs, without changing ours.
    other = threading.Thread(target=torch.set_num_threads, args=(team_of_others,))
    other.start()
    other.join()
