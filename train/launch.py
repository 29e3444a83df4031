"""Devices and processes: what the launcher started, and what this process may use."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from train.options import RunOptions

# After this long without an answer from another rank, collective operations fail instead of waiting on.
RANK_TIMEOUT = timedelta(minutes=10)


def check_device(device: str) -> None:
    """Refuse a GPU that is not there, instead of training slowly without one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU; check the driver (nvidia-smi), or use --device auto")


def make_accelerator(options: RunOptions) -> Accelerator:
    """Accelerate for devices, processes and trackers; precision and accumulation stay with the trainer."""
    use_cpu = options.device == "cpu" or not torch.cuda.is_available()
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    accelerator = Accelerator(
        cpu=use_cpu,
        mixed_precision="no",
        log_with=list(options.trackers) or None,
        project_dir=options.run_dir,
        kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=RANK_TIMEOUT)],
    )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise RuntimeError(
            f"the launcher started {expected} processes, but this one sees {accelerator.num_processes}; "
            "launch with --config_file accelerate_config.yaml"
        )
    return accelerator
