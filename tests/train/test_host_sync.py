"""A training step never waits for a value from the device."""

from collections import Counter
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.helpers.runs import options
from tests.helpers.shard_sets import small_images
from tests.helpers.short_runs import make_run
from train.checkpoints.files import save
from train.methods.registry import find_method, method_names
from train.run import Run

# What reading a value of a tensor on the host comes down to.
SYNCHRONISING = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
FIRST_STAGE = {
    "crt": "vanilla",
    "lws": "vanilla",
    "mislas": "vanilla",
    "finetune": "vanilla",
    "glmc_maxnorm": "glmc",
    "metasaug_large": "vanilla",
    "fsa": "vanilla",
}
NCL = {"method.name": "ncl", "method.hard_classes": 2}
# Every method, in the phase in which it does most: mixing, re-weighting, correcting covariances.
CASES: dict[str, dict[str, Any]] = {
    **{name: {"method.name": name} for name in method_names()},
    "vanilla, LDAM": {"method.name": "vanilla", "method.loss": "ldam", "method.rule": "reweight"},
    "cmo, DRW": {"method.name": "cmo", "method.rule": "drw", "method.drw_from_epoch": 0},
    "ride": {"method.name": "ride", "method.mixing": "paste", "method.reweight_from_epoch": 0},
    "metasaug": {"method.name": "metasaug", "method.meta_from_epoch": 0},
    "paco": {"method.name": "paco", "method.key_queue": 16},
    "gpaco": {"method.name": "gpaco", "method.key_queue": 16, "method.group": 4},
    "finetune": {"method.name": "finetune", "method.tuned": "head", "method.start": "random"},
    "ib, influence": {"method.name": "ib", "method.ib_from_epoch": 0},
    "glmc, BS": {"method.name": "glmc", "method.rebalance": "bs"},
    "ncl": {**NCL, "method.mixing": "paste"},
    "ncl, plain": NCL,
    "ncl, contrastive": {**NCL, "method.contrastive": True, "method.queue": 16},
    "ncl++": {**NCL, "method.copies": 2},
    "BS, moving average": {"method.name": "vanilla", "method.loss": "bs", "ema_decay": 0.9},
}
STEPS_ON_A_GPU = 20


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_images(tmp_path_factory.mktemp("balanced") / "meta", (2, 2, 2, 2)).path


def run_of(case: str, data: Path, meta: Path, folder: Path, device: str, epochs: int = 3, **further: str) -> Run:
    """A run that mixes in every step, if its method can and the case does not say otherwise."""
    changes = CASES[case]
    name = changes["method.name"]
    parts = {key.removeprefix("method."): value for key, value in changes.items()}
    known = {field.name for field in fields(find_method(name, parts).Options)}
    mixing = {"mixup_prob": 1.0, "plain_first": 0, "plain_last": 0}
    others = {f"method.{key}": value for key, value in mixing.items() if key in known} | changes | further
    if name.startswith("metasaug"):
        others["data.meta"] = meta
    if name in FIRST_STAGE:
        first = make_run(options(data, folder / "first", device=device, **{"method.name": FIRST_STAGE[name]}))
        save(folder / "first.pt", {"model": first.trainer.bare_model.state_dict()})
        others["model.init_from"] = folder / "first.pt"
    return make_run(options(data, folder / "run", device=device, epochs=epochs, **others))


@pytest.mark.parametrize("case", CASES)
def test_no_step_reads_a_value_of_a_tensor(case: str, data: Path, meta: Path, tmp_path: Path) -> None:
    run = run_of(case, data, meta, tmp_path, "cpu")
    with run.make_loader() as loader:
        for number, loaded in enumerate(islice(loader, 2)):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                run.trainer.train_step(loaded)
            counts = Counter({event.key: event.count for event in profiler.key_averages()})
            assert counts["aten::convolution"] > 30, "the profile saw the network"
            assert not {name: counts[name] for name in SYNCHRONISING if name in counts}, f"step {number}"


def test_the_profile_would_show_a_read() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(3).sum().item()
    assert {event.key for event in profiler.key_averages()} >= {"aten::item", "aten::_local_scalar_dense"}


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_the_gpu(case: str, data: Path, meta: Path, tmp_path: Path) -> None:
    run = run_of(case, data, meta, tmp_path, "cuda", epochs=STEPS_ON_A_GPU)
    assert run.accelerator.device.type == "cuda"
    with run.make_loader() as loader:
        steps = iter(loader)
        run.trainer.train_step(next(steps))  # the first step allocates and chooses kernels
        taken = 0
        for loaded in islice(steps, STEPS_ON_A_GPU):
            torch.cuda.set_sync_debug_mode("error")
            try:
                run.trainer.train_step(loaded)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            taken += 1
        assert taken == STEPS_ON_A_GPU
