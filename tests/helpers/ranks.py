"""Two processes of a test that exchange tensors, and what each of them returns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

import tests.helpers.processes  # noqa: F401 - sets what a fork server imports beforehand


def on_two_processes(function: Callable[[int, int], Any], folder: Path) -> list[Any]:
    """`function(rank, world_size)` on two processes over gloo; their results by rank. `function` is a module's."""
    torch.multiprocessing.start_processes(_run, (function, str(folder)), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def _run(rank: int, function: Callable[[int, int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    dist.barrier()  # a function that raises at once must not end its rank while the other still connects
    torch.save(function(rank, 2), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
