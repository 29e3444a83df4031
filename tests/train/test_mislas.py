"""MiSLAS: label-aware smoothing, and two steps of its second stage, against the numbers of the official code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.runs import options
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import context, loss_of, make_method, micro_step, random_images
from tests.helpers.vectors import wave
from tools.sources.subsets import long_tailed_counts
from train.checkpoints.files import save
from train.losses.functions import cross_entropy
from train.losses.smoothing import label_aware_smoothing, smoothing_factors
from train.models.build import ModelOptions
from train.models.heads import ScaledLinear

COUNTS = np.array((500, 100, 20, 5))
LABELS = torch.tensor([0, 2, 3, 1])
FACTORS = smoothing_factors(COUNTS, 0.4, 0.1).double()


def test_factors_rise_with_the_number_of_samples() -> None:
    np.testing.assert_allclose(FACTORS, (0.4, 0.18907611, 0.11427457, 0.1), rtol=1e-6)
    many = smoothing_factors(long_tailed_counts(500, 100, 0.01), 0.4, 0.1)
    np.testing.assert_allclose(many[[1, 50]], (0.3992013, 0.14080899), rtol=1e-6)
    ten = smoothing_factors(long_tailed_counts(5000, 10, 0.01), 0.3, 0.0)
    np.testing.assert_allclose(ten[[1, 4, 8]], (0.24141163, 0.056307905, 0.0031415352), rtol=1e-6)
    assert smoothing_factors(np.array([7, 7]), 0.4, 0.1).tolist() == pytest.approx([0.1, 0.1])


def test_smoothed_cross_entropy() -> None:
    z = torch.from_numpy(wave("sin", (4, 4), (0.7, 1.3), 0.2, 2)).requires_grad_()
    factors = torch.from_numpy(0.1 + 0.3 * np.sin(np.pi / 2 * (COUNTS - 5) / 495))
    rows = label_aware_smoothing(z, LABELS, factors)
    np.testing.assert_allclose(rows.detach(), (2.015901, 2.9550285, 3.5292185, 2.5550374), rtol=1e-6)
    rows.mean().backward()
    assert rows.mean().item() == pytest.approx(2.7637964, rel=1e-6)
    assert z.grad is not None
    np.testing.assert_allclose(z.grad[0], [-0.14115063, 0.1422637, 0.019458579, -0.020571648], rtol=1e-6)


def test_mixup_of_the_first_stage() -> None:
    z = torch.from_numpy(wave("sin", (4, 4), (0.7, 1.3), 0.2, 2))
    losses = [cross_entropy(z, labels).mean() for labels in (LABELS, torch.tensor([3, 3, 0, 2]))]
    assert float(0.3 * losses[0] + 0.7 * losses[1]) == pytest.approx(3.0121135, rel=1e-6)


def test_two_steps_of_the_second_stage() -> None:
    """At two rates, from the classifier of the first stage; the optimizer is set up as a run's."""
    stage = make_method("mislas", context(COUNTS), classifier_rate=0.2).stage
    model = nn.Module()
    model.linear = nn.Linear(3, 4)
    stage.prepare(model, ("linear",))
    head = model.linear
    assert isinstance(head, ScaledLinear)
    head.double()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(wave("sin", (4, 3), (0.5, 0.9), 0.2)))
        head.bias.copy_(torch.from_numpy(wave("cos", (4,), (0.7,), 0.3, 0.5)))
    groups = [{"params": [p], "lr": 0.1 * stage.rate_factor(n)} for n, p in model.named_parameters()]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=2e-4)
    factors = torch.from_numpy(0.1 + 0.3 * np.sin(np.pi / 2 * (COUNTS - 5) / 495))
    batches = (
        (1 + wave("cos", (4, 3), (0.9, 0.5), 0.1, 0.8), LABELS, 1.4618625),
        (1 + wave("sin", (4, 3), (0.8, 0.6), 0.4, 0.8), torch.tensor([1, 0, 3, 2]), 1.5244079),
    )
    for number, (x, labels, expected) in enumerate(batches):
        optimizer.zero_grad()
        loss = label_aware_smoothing(head(torch.from_numpy(x)), labels, factors).mean()
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        loss.backward()
        if number == 0:
            gradient = [-0.051014291, 0.52591391, -0.20741544, -0.096013232]
            np.testing.assert_allclose(head.scales.grad, gradient, rtol=1e-6)
        optimizer.step()
    np.testing.assert_allclose(head.scales.detach(), (0.97406986, 0.87978457, 1.0299901, 1.0545622), rtol=1e-6)
    np.testing.assert_allclose(head.weight[0].detach(), (0.1962331, 0.89033419, 0.90855326), rtol=1e-6)
    np.testing.assert_allclose(head.bias.detach(), (0.47077703, 0.26440963, -0.062226941, -0.35813074), rtol=1e-6)


@pytest.mark.parametrize("freeze", [False, True])
def test_the_second_stage_goes_on_with_the_classifier_at_its_own_rate(data: Path, tmp_path: Path, freeze: bool) -> None:
    first = make_method("vanilla", context((14, 7, 4, 2))).build_model(ModelOptions(width=4), seed=5)
    save(tmp_path / "first.pt", {"model": first.state_dict()})
    chosen = {"method.name": "mislas", "method.classifier_rate": 0.2, "method.freeze_statistics": freeze}
    run = make_run(options(data, tmp_path / "run", **chosen, max_steps=2, **{"model.init_from": tmp_path / "first.pt"}))
    groups = run.trainer.parts.optimizer.param_groups
    assert sorted((len(group["params"]), group["rate_factor"]) for group in groups) == [(1, 1.0), (2, 0.2)]
    run.trainer._set_lr(0)
    assert sorted(group["lr"] for group in groups) == pytest.approx([0.2 * run.trainer._lr, run.trainer._lr])
    before, start = first.state_dict(), run.trainer.bare_model.state_dict()
    assert all(torch.equal(start[name], value) for name, value in before.items())
    take_steps(run)
    changed = {
        n for n, v in run.trainer.bare_model.state_dict().items() if n in before and not torch.equal(v, before[n])
    }
    statistics = {n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert changed == {"linear.weight", "linear.bias"} | (set() if freeze else statistics)


def test_shares_of_micro_batches_add_up() -> None:
    method = make_method("vanilla", context(COUNTS), objective="smoothing")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    streams = {"original": (random_images(7), [0, 2, 3, 1, 0, 0, 1])}
    whole = loss_of(method, model, micro_step(0, streams)).loss
    parts = [loss_of(method, model, micro_step(0, streams, part=part, parts=3)).loss for part in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@pytest.mark.parametrize("values", [{"smooth_head": 0.1, "smooth_tail": 0.4}, {"classifier_rate": -1.0}])
def test_impossible_options_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        make_method("mislas", context(COUNTS), **values)
