"""Stop requests, checkpoint requests and non-finite losses, agreed on by all ranks without waiting for the device.

Each step posts its flags as one small tensor, reduced over the ranks. They are read one step later, at the same point
of the loop on every rank, so all ranks act after the same step and the device is never idle.
"""

import os
import signal
from collections import deque
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.transfer import to_device

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # Slurm can send SIGUSR1 ahead of its time limit
LAG_STEPS = 1


class StopRequest:
    """Set by the first stop signal; a second one exits the process at once with status 128 + its number."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        """Install handlers for the stop signals of this process (main thread only)."""
        self._previous = [signal.signal(number, self._handle) for number in STOP_SIGNALS]
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in zip(STOP_SIGNALS, self._previous, strict=True):
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        message = f"\n{signal.Signals(number).name}: writing a checkpoint, then stopping; again to stop at once\n"
        os.write(2, message.encode())  # not logging, because the signal may have interrupted a call that holds its lock


@dataclass(frozen=True)
class Verdict:
    """The ranks' agreement; epoch and step are those of the first non-finite loss, or of the last flags read."""

    epoch: int
    step: int
    non_finite: bool
    stop: bool
    save: bool


class SharedFlags:
    """A queue of posted flags, read `LAG_STEPS` steps late."""

    def __init__(self, device: torch.device):
        self._device = device
        self._posted: deque[tuple[int, int, Tensor, torch.cuda.Event | None]] = deque()

    def post(self, epoch: int, step: int, loss: Tensor, stop: bool, save: bool) -> None:
        """Share this rank's flags of a step. loss: scalar on the device."""
        wishes = to_device(torch.tensor([float(stop), float(save)]), self._device)
        flags = torch.cat([(~torch.isfinite(loss.detach())).float().reshape(1), wishes])
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        event = None
        if self._device.type == "cuda":
            flags = flags.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._posted.append((epoch, step, flags, event))

    def read(self, drain: bool = False) -> Verdict | None:
        """The flags that are due (with `drain`, all posted ones) as one verdict; None if no flag is set.

        Once a flag is set, everything posted since is read too, so a checkpoint written because of a verdict never
        has weights from a step whose loss was not checked.
        """
        verdict = None
        while len(self._posted) > (0 if drain or verdict else LAG_STEPS):
            epoch, step, flags, event = self._posted.popleft()
            if event is not None:
                event.synchronize()
            non_finite, stop, save = (flag > 0 for flag in flags.tolist())
            if verdict is not None:
                stop, save = stop or verdict.stop, save or verdict.save
            if non_finite or stop or save:
                verdict = Verdict(epoch, step, non_finite, stop, save)
            if non_finite:
                return verdict
        return verdict
