"""Threads that share torch's work on the CPU image by image, instead of inside every operation."""

from concurrent.futures import ThreadPoolExecutor

import torch


def one_thread_each(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads run torch's operations each by itself; torch releases the interpreter while it computes.

    torch's own team of threads meets after every operation. Where decoders want the same cores, the team then waits
    for whichever of its threads the system has put off, and cores stand idle.
    """
    # The setting concerns the calling thread, and such as are started later and do not set their own.
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(1,))
