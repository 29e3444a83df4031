"""Devices and processes: what the launcher started, and what this process may use."""

import os
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from train.options import RunOptions

# After this long without an answer from another rank, collective operations fail instead of waiting on. Ranks that have
# not met yet wait for a shorter time: one that died before it came leaves no connection whose end the others notice.
RANK_TIMEOUT = timedelta(minutes=10)


def check_device(device: str) -> None:
    """Refuse a GPU that is not there, instead of training slowly without one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU; check the driver (nvidia-smi), or use --device auto")


def make_accelerator(options: RunOptions) -> Accelerator:
    """Accelerate for devices, processes and trackers; precision and accumulation stay with the trainer.

    Raises:
        RuntimeError: the other processes did not come in time, or are not as many as the launcher started.
    """
    use_cpu = options.device == "cpu" or not torch.cuda.is_available()
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    meeting = InitProcessGroupKwargs(timeout=timedelta(seconds=options.meet_within_seconds))
    _wait_for_first_rank(options.meet_within_seconds)
    try:
        accelerator = Accelerator(
            cpu=use_cpu,
            mixed_precision="no",
            log_with=list(options.trackers) or None,
            project_dir=options.run_dir,
            kwargs_handlers=[ddp, meeting],
        )
        if dist.is_initialized():
            dist.barrier()  # NCCL connects at the first operation: that is part of the meeting
            dist.set_timeout(RANK_TIMEOUT)
    except dist.DistError as error:
        raise RuntimeError(_who_did_not_come(options.meet_within_seconds)) from error
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise RuntimeError(
            f"the launcher started {expected} processes, but this one sees {accelerator.num_processes}; "
            "launch with --config_file accelerate_config.yaml"
        )
    return accelerator


def _wait_for_first_rank(seconds: float) -> None:
    """Until somebody listens at the meeting point; torch itself would wait for more than twice the time it is given."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if os.environ.get("RANK", "0") == "0" or address is None or port is None:
        return
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, int(port)), timeout=1.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(_who_did_not_come(seconds)) from error
            time.sleep(0.2)


def _who_did_not_come(seconds: float) -> str:
    rank, world_size, address, port = (
        os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    )
    return (
        f"rank {rank} did not meet all of the {world_size} processes at {address}:{port} within {seconds:g} s: one has "
        "died before it came (see what the others printed), cannot reach that address, or is slower to start; then "
        "raise --meet_within_seconds"
    )
