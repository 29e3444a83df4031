"""A training step never waits for a value from the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.train.runs import options
from tests.train.short_runs import make_run

# What reading a value of a tensor on the host comes down to.
SYNCHRONISING = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
METHODS: list[dict[str, Any]] = [
    {"method.name": "vanilla", "method.loss": "ldam", "method.rule": "reweight"},
    {"method.name": "cmo", "method.loss": "bs", "method.mixup_prob": 1.0},
    {"method.name": "remix"},
    {"method.name": "ride", "method.mixup_prob": 1.0, "method.start_data_aug": -1, "method.end_data_aug": 0},
]


@pytest.mark.parametrize("changes", METHODS, ids=lambda changes: changes["method.name"])
def test_no_step_reads_a_value_of_a_tensor(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = make_run(options(data, tmp_path / "run", log_every_steps=100, **changes))
    with run.make_loader() as loader:
        for number, loaded in zip(range(2), loader, strict=False):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                run.trainer.train_step(loaded)
            counts = {event.key: event.count for event in profiler.key_averages()}
            assert counts["aten::convolution"] > 30, "the profile saw the network"
            assert not {name: counts[name] for name in SYNCHRONISING if name in counts}, f"step {number}"


def test_the_profile_would_show_a_read() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(3).sum().item()
    assert {event.key for event in profiler.key_averages()} >= {"aten::item", "aten::_local_scalar_dense"}


@pytest.mark.gpu
@pytest.mark.parametrize("changes", METHODS, ids=lambda changes: changes["method.name"])
def test_no_step_waits_for_the_gpu(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = make_run(options(data, tmp_path / "run", epochs=5, log_every_steps=100, device="cuda", **changes))
    with run.make_loader() as loader:
        steps = iter(loader)
        run.trainer.train_step(next(steps))  # the first step allocates and chooses kernels
        for _, loaded in zip(range(19), steps, strict=False):
            torch.cuda.set_sync_debug_mode("error")
            try:
                run.trainer.train_step(loaded)
            finally:
                torch.cuda.set_sync_debug_mode("default")
