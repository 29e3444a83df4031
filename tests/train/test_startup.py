"""The start of a run in parts: they are told apart, lose nothing, and count from where the process began."""

import gc
import subprocess
import sys
import time

import pytest

from shards.commandline import importing
from train.startup import StartClock


def busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_working_and_waiting_are_told_apart() -> None:
    clock = StartClock()
    busy(0.08)
    clock.end_of("imports")
    time.sleep(0.1)
    clock.end_of("data")
    record = clock.record()
    assert list(record) == ["imports", "data"]
    assert record["imports"]["wall"] >= record["imports"]["cpu"] >= 0.08
    assert record["data"]["wall"] >= 0.1 > 0.05 > record["data"]["cpu"]
    assert "imports 0." in clock.line() and "data 0." in clock.line()


def test_a_command_counts_from_the_start_of_its_process() -> None:
    code = "import time; time.sleep(0.3); from train.startup import StartClock as C; c = C(from_process_start=True)"
    code += "; c.end_of('python'); print(c.parts[0].seconds, c.parts[0].cpu_seconds)"
    started = time.perf_counter()
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lived = time.perf_counter() - started
    seconds, cpu = map(float, printed.split())
    assert 0.3 <= seconds <= lived + 0.02  # the system counts hundredths
    assert 0 < cpu < seconds


@pytest.mark.parametrize("fails", [False, True])
def test_imports_are_not_searched_for_garbage_and_what_follows_is(fails: bool) -> None:
    try:
        with importing():
            assert not gc.isenabled()
            if fails:
                raise ImportError
    except ImportError:
        pass
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def test_what_small_networks_do_without_is_not_imported_before_training() -> None:
    """They cost seconds: some serve the end of a run, the others large networks."""
    heavy = {"matplotlib", "scipy", "sklearn", "timm", "torchvision"}
    code = f"import sys, train.run, train.options; print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
