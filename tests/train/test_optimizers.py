"""Parameter groups, rates per step and loss scales."""

import logging
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.helpers.runs import COUNTS, last_weights, options, same_weights
from tests.helpers.short_runs import make_run
from train.models.build import ModelOptions, build_model
from train.optimizers import FACTOR, make_optimizer, parameter_groups, warn_of_destructive_rate
from train.options import OptimizerOptions
from train.run import FINISHED, train
from train.schedules import Schedule, ScheduleOptions


def tiny() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=8, num_heads=2, num_classes=3)


def by_name(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """Name → (weight decay, rate factor)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: (group["weight_decay"], group.get(FACTOR, 1.0)) for group in groups for p in group["params"]}


def test_by_default_there_is_one_group_of_all_trained_parameters_in_their_order() -> None:
    model = tiny()
    model.cls_token.requires_grad_(False)
    (group,) = parameter_groups(model, OptimizerOptions(), lambda name: 1.0)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.requires_grad]


def test_decay_of_matrices_spares_norms_biases_and_positions() -> None:
    model = tiny()
    groups = parameter_groups(model, OptimizerOptions(decay="matrices", weight_decay=0.1), lambda name: 1.0)
    found = by_name(model, groups)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, (decay, _) in found.items():
        spared = model.get_parameter(name).ndim == 1 or name in ("pos_embed", "cls_token")
        assert decay == (0.0 if spared else 0.1), name


def test_rate_factors_of_layers_and_names_multiply() -> None:
    model = tiny()
    options = OptimizerOptions(layer_decay=0.5)
    found = by_name(model, parameter_groups(model, options, lambda name: 10.0 if name.startswith("head") else 1.0))
    assert found["head.weight"][1] == 10.0
    ratio = found["blocks.0.attn.qkv.weight"][1] / found["blocks.1.attn.qkv.weight"][1]
    assert ratio == pytest.approx(0.5)
    assert found["patch_embed.proj.weight"][1] < found["blocks.0.attn.qkv.weight"][1]


def test_adamw_is_torchs_on_these_groups() -> None:
    model = tiny()
    options = OptimizerOptions(kind="adamw", lr=1e-3, weight_decay=0.05, decay="matrices")
    optimizer = make_optimizer(model, options, lambda name: 1.0, 1e-3, fused=False)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.05]


def test_a_destructive_rate_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    high = OptimizerOptions(kind="adamw", lr=0.01)
    for chosen, pretrained in ((high, False), (replace(high, lr=1e-3), True), (replace(high, kind="sgd"), True)):
        warn_of_destructive_rate(chosen, pretrained)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        warn_of_destructive_rate(high, True)
    assert "known to destroy" in caplog.text


def test_rates_of_lift() -> None:
    schedule = Schedule(ScheduleOptions(kind="cosine", warmup_epochs=0), 0.02, 5)
    expected = [0.02, 0.0180901699, 0.0130901699, 0.00690983006, 0.00190983006]
    assert [schedule.lr_at(epoch, 7, 10) for epoch in range(5)] == pytest.approx(expected)


def test_rates_by_step_rise_and_fall_without_a_jump() -> None:
    schedule = Schedule(ScheduleOptions(kind="cosine", warmup_epochs=1, per="step"), 1.0, 4)
    rates = [schedule.lr_at(epoch, step, 10) for epoch in range(4) for step in range(10)]
    assert rates[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert rates[10] == 1.0 and rates[25] == pytest.approx(0.5) and 0 < rates[-1] < 0.01
    assert all(a >= b for a, b in pairwise(rates[10:]))
    with pytest.raises(ValueError, match="per step"):
        ScheduleOptions(kind="steps", per="step")


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_from_scratch_is_a_plain_loop_bit_for_bit(nesterov: bool, data: Path, tmp_path: Path) -> None:
    """Groups, factors, clipping and loss scales leave a run without them as it is: the loop written out in torch."""
    chosen = {"method.name": "vanilla", "schedule.kind": "cosine", "schedule.warmup_epochs": 0, "evaluate_every": 3}
    chosen["optimizer.nesterov"] = str(nesterov).lower()
    assert train(options(data, tmp_path / "run", **chosen)) == FINISHED
    threads = torch.get_num_threads()
    run = make_run(options(data, tmp_path / "plain", **chosen))
    torch.set_num_threads(threads)
    model = build_model(ModelOptions("resnet32", 4), len(COUNTS), "linear", seed=0).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=2e-4, nesterov=nesterov)
    mean, std = (torch.tensor(v) for v in (run.preset.normalization.mean, run.preset.normalization.std))
    with run.make_loader() as loader:
        for loaded in loader:
            optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * loaded.whole.epoch / 3))
            batch = loaded.micro_batches[0].batches["original"]
            images = (batch.images[0].float() - 255 * mean) * (1 / (255 * std))
            losses = torch.nn.functional.cross_entropy(
                model(images.permute(0, 3, 1, 2)), batch.labels, reduction="none"
            )
            (losses * (1 / len(losses))).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same_weights(last_weights(tmp_path / "run"), model.state_dict())
