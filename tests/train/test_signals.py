"""Stop requests and shared flags."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.helpers.runs import ROOT
from train.loop.signals import SharedFlags, StopRequest

CPU = torch.device("cpu")
FINE, BROKEN = torch.tensor(1.0), torch.tensor(float("nan"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_only_asks(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number
    assert signal.getsignal(number) == before


def test_the_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import os, signal\nfrom train.loop.signals import StopRequest\n"
        "with StopRequest():\n    os.kill(os.getpid(), signal.SIGTERM)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM
    assert "still here" not in done.stdout
    assert "writing a checkpoint" in done.stderr


def test_flags_are_read_a_step_late_and_all_of_them_before_anyone_acts() -> None:
    flags = SharedFlags(CPU)
    flags.post(0, 0, FINE, stop=False, save=True)
    assert flags.read() is None
    flags.post(0, 1, BROKEN, stop=True, save=False)
    verdict = flags.read()
    assert verdict is not None
    assert (verdict.step, verdict.non_finite, verdict.stop, verdict.save) == (1, True, True, True)
    assert flags.read(drain=True) is None


def test_nothing_to_report_is_none() -> None:
    flags = SharedFlags(CPU)
    for step in range(3):
        flags.post(0, step, FINE, stop=False, save=False)
        assert flags.read() is None
    assert flags.read(drain=True) is None


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_every_kind_of_non_finite_loss_is_seen(value: float) -> None:
    flags = SharedFlags(CPU)
    flags.post(2, 7, torch.tensor(value), stop=False, save=False)
    verdict = flags.read(drain=True)
    assert verdict is not None
    assert verdict.non_finite
    assert (verdict.epoch, verdict.step) == (2, 7)
