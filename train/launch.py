"""Devices and processes: what the launcher has started, and what this process may use."""

import logging
import os
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn
from torch.distributed import distributed_c10d

from shards.commandline import UsageError
from shards.files import OutsideError
from train.options import RunOptions

logger = logging.getLogger(__name__)

# After this long without a response from another rank, collective operations fail instead of waiting. Ranks that have
# not connected yet wait for less: one that died before connecting leaves no connection for the others to lose.
RANK_TIMEOUT = timedelta(minutes=10)

# Settings that `accelerate launch` passes to its processes, and what to do instead.
_SWITCHES = {
    "ACCELERATE_USE_FSDP": "FSDP; the trainer keeps whole networks on every process: choose MULTI_GPU",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed; the trainer has its own optimizer steps: choose MULTI_GPU",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM, which is for language models: choose MULTI_GPU",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration; networks are not divided: choose MULTI_GPU",
}
_INSTEAD = "run `accelerate config` again, or launch with --config_file accelerate_config.yaml"


def check_device(device: str) -> None:
    """Refuse a missing GPU, instead of training slowly without one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, but torch sees no GPU; check the driver (nvidia-smi), or use --device auto")


def device_of(text: str) -> torch.device:
    """The device for a tool's --device; "auto" is a GPU if there is one.

    Raises:
        UsageError: there is no such device type, or this machine has none.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device is {text!r}, expected cpu, cuda, or one GPU such as cuda:1")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UsageError(f"--device is {text}, but torch sees {found} GPUs; check nvidia-smi, or use --device cpu")
    return device


def check_launcher(options: RunOptions) -> None:
    """Refuse settings of Accelerate's configuration that the trainer does not support or has its own option for.

    Raises:
        UsageError: naming the setting and the remedy.
    """
    for name, what in _SWITCHES.items():
        if os.environ.get(name, "false").lower() in ("1", "true", "yes"):
            raise UsageError(f"Accelerate's configuration enables {what}; {_INSTEAD}")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", options.mixed_precision):
        raise UsageError(
            f"Accelerate's configuration sets mixed precision {precision}, this run "
            f"{options.mixed_precision}: the trainer uses its own option, --mixed_precision; {_INSTEAD}"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no" and not (backend == "inductor" and options.compile):
        raise UsageError(
            f"Accelerate's configuration enables torch dynamo ({backend}): the trainer uses its own option, "
            f"--compile true, which is inductor; {_INSTEAD}"
        )
    parts = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if parts not in ("1", "auto", str(options.accumulation)):
        raise UsageError(
            f"Accelerate's configuration sets {parts} gradient accumulation steps, this run "
            f"{options.accumulation}: the trainer uses its own option, --accumulation; {_INSTEAD}"
        )


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers that would not work.

    Raises:
        UsageError: a name is unknown, or its package is not installed.
    """
    available = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(f"trackers: {name!r} is unknown; Accelerate supports {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in available:
            raise UsageError(
                f"trackers: {name} is not installed; install its package, or omit it: --trackers "
                f"{' '.join(other for other in names if other in available) or 'none'}"
            )


def make_accelerator(options: RunOptions) -> Accelerator:
    """Accelerate for devices, processes and trackers; the trainer handles precision, accumulation and compiling.

    Raises:
        OutsideError: the other processes did not connect in time, or their number is not what the launcher started.
    """
    use_cpu = options.device == "cpu" or not torch.cuda.is_available()
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    meeting = InitProcessGroupKwargs(timeout=timedelta(seconds=options.meet_within_seconds))
    _wait_for_first_rank(options.meet_within_seconds)
    try:
        accelerator = Accelerator(
            cpu=use_cpu,
            mixed_precision="no",
            dynamo_backend="no",
            log_with=list(options.trackers) or None,
            project_dir=options.run_dir,
            kwargs_handlers=[ddp, meeting],
        )
        if dist.is_initialized():
            dist.barrier()  # NCCL connects at the first operation, which must happen within the time limit too
            # torch 2.11 has it under its private name only.
            set_timeout = getattr(dist, "set_timeout", distributed_c10d._set_pg_timeout)
            set_timeout(RANK_TIMEOUT)
    except dist.DistError as error:
        raise OutsideError(_who_did_not_come(options.meet_within_seconds)) from error
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise OutsideError(
            f"the launcher started {expected} processes, but this one sees {accelerator.num_processes}; "
            "launch with --config_file accelerate_config.yaml"
        )
    return accelerator


def _wait_for_first_rank(seconds: float) -> None:
    """Wait until the rendezvous address accepts connections; torch waits for more than twice its own timeout."""
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
                raise OutsideError(_who_did_not_come(seconds)) from error
            time.sleep(0.2)


def _who_did_not_come(seconds: float) -> str:
    rank, world_size, address, port = (
        os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    )
    return (
        f"rank {rank} could not connect to all {world_size} processes at {address}:{port} within {seconds:g} s: one "
        "died before connecting (see the output of the others), cannot reach that address, or is slow to start; in "
        "that case raise --meet_within_seconds"
    )


def start_trackers(accelerator: Accelerator, names: tuple[str, ...]) -> None:
    """Start the trackers.

    Raises:
        OutsideError: a tracker cannot start, for example because nobody is logged in.
    """
    try:
        accelerator.init_trackers("longtail")
    except Exception as error:  # any tracker's own kind
        raise OutsideError(
            f"trackers: {' '.join(names)} cannot start ({type(error).__name__}: {error}); fix that, or use "
            "--trackers none"
        ) from error


def end(accelerator: Accelerator) -> None:
    """Close trackers, free memory and leave the group of processes."""
    accelerator.free_memory()
    try:
        for tracker in accelerator.trackers:
            tracker.finish()
    except Exception as error:  # any tracker's own kind
        logger.warning("a tracker could not be closed: %s: %s", type(error).__name__, error)
    accelerator.trackers = []
    accelerator.end_training()  # destroys the group


def bare(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The network itself, whatever wraps it: the names of its parameters are those of every checkpoint."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)
