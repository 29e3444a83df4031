"""RIDE: published loss and parameter counts, shares of a global batch, both labels under CMO."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.mix_rule import MixPlan
from tests.helpers.steps import PlannedStep, context, loss_of, make_method, micro_step, random_images
from train.methods.method import Method
from train.methods.objectives.ride import RIDEOptions, class_temperatures, diversity
from train.models.build import ModelOptions
from train.models.ride import SCALE, build_ride

COUNTS = (60, 25, 9, 3)


def ride(counts: Sequence[int] = COUNTS, epochs: int = 200, **options: Any) -> Method:
    return make_method("ride", context(counts, epochs), **options)


def step_of(epoch: int, labels: list[int], part: int = 0, parts: int = 1, **others: Any) -> PlannedStep:
    streams = {"original": (random_images(len(labels), size=4), labels), **others}
    return micro_step(epoch, streams, part=part, parts=parts)


def logits_of(experts: int, rows: int, classes: int) -> torch.Tensor:
    return 10 * torch.randn(experts, rows, classes, generator=torch.Generator().manual_seed(3))


# ------------------------------------------------------------------ published numbers


@pytest.mark.parametrize(("epoch", "total", "classification"), [(0, 13.49598, 13.51781), (160, 19.73362, 19.75338)])
def test_the_loss_equals_the_official_code(epoch: int, total: float, classification: float) -> None:
    logits = torch.tensor(
        [[[6, -3, 9], [15, 6, -9]], [[3, 0, 12], [12, 9, -3]], [[0, 3, 15], [18, -6, 0]]], dtype=torch.float32
    )
    step = step_of(epoch, [2, 0])
    for delta, expected in ((-0.45, total), (0.0, classification)):
        method = ride((100, 50, 10), diversity=delta, temperature=0.05, reweight_from_epoch=160)
        assert float(method.objective.term(step.of(method), "original", logits)) == pytest.approx(expected, abs=5e-4)


def test_class_temperatures_equal_the_official_code() -> None:
    found = class_temperatures(np.array([100, 50, 10]), 0.05).tolist()
    assert found == pytest.approx([1, 0.95508981, 0.91916168], rel=1e-6)


@pytest.mark.parametrize(
    ("backbone", "classes", "experts", "parameters"),
    [
        ("resnet32", 100, 2, 530_512),
        ("resnet32", 100, 3, 783_856),
        ("resnet32", 100, 4, 1_037_200),
        ("resnet50", 1000, 3, 43_677_248),
        ("resnet50", 1000, 4, 57_754_688),
        ("resnet50", 8142, 3, 76_587_584),
        ("resnet50", 8142, 4, 101_635_136),
        ("resnext50_32x4d", 1000, 3, 42_889_024),
    ],
)
def test_networks_have_the_published_number_of_parameters(
    backbone: str, classes: int, experts: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = build_ride(ModelOptions(name=backbone), classes, experts, True, 0)
    assert sum(p.numel() for p in model.parameters()) == parameters


# -------------------------------------------------------------------- the networks


def test_parameters_carry_the_names_of_the_official_code() -> None:
    names = build_ride(ModelOptions(width=4), 5, 3, True, 0).state_dict()
    assert {name.split(".")[1] for name in names} == {"conv1", "bn1", "layer1", "layer2s", "layer3s", "linears"}
    assert names["backbone.layer2s.1.0.conv1.weight"].shape == (6, 4, 3, 3)
    assert names["backbone.layer3s.2.4.bn2.weight"].shape == (12,)
    assert names["backbone.linears.0.weight"].shape == (12, 5)
    with torch.device("meta"):
        large = build_ride(ModelOptions(name="resnet50"), 5, 2, True, 0).state_dict()
    tops = {"conv1", "bn1", "layer1", "layer2", "layer3s", "layer4s", "linears"}
    assert {name.split(".")[1] for name in large} == tops
    assert large["backbone.layer3s.1.0.downsample.0.weight"].shape == (768, 512, 1, 1)
    assert large["backbone.layer4s.0.0.conv2.weight"].shape == (384, 384, 3, 3)


def test_full_width_experts_are_as_wide_as_the_plain_network() -> None:
    full = build_ride(ModelOptions(width=4), 5, 2, False, 0).state_dict()
    assert full["backbone.layer3s.0.0.conv1.weight"].shape == (16, 8, 3, 3)
    with torch.device("meta"):
        large = build_ride(ModelOptions(name="resnet50"), 5, 2, False, 0).state_dict()
    assert large["backbone.layer4s.0.0.conv2.weight"].shape == (512, 512, 3, 3)


@pytest.mark.parametrize("name", ["resnet32", "resnet26"])
def test_each_expert_is_its_own_network_on_the_shared_trunk(name: str) -> None:
    model = build_ride(ModelOptions(name=name, width=4), 5, 2, True, 0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        before = model(images)
        last = model.backbone.layer3s if name == "resnet32" else model.backbone.layer4s
        for parameter in last[1].parameters():
            parameter.zero_()
        after = model(images)
    assert before.shape == (2, 2, 5)
    assert float(before.abs().max()) <= SCALE + 1e-4  # cosines, scaled
    assert not torch.equal(before[0], before[1])
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_a_seed_makes_the_same_network_and_another_seed_another() -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([p.flatten() for p in build_ride(ModelOptions(width=4), 5, 2, True, seed).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_backbones_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(ValueError, match="resnet18"):
        build_ride(ModelOptions(name="resnet18"), 5, 2, True, 0)
    with pytest.raises(ValueError, match="pretrained"):
        build_ride(ModelOptions(name="resnet50", pretrained=True), 5, 2, True, 0)


# ----------------------------------------------------------------------- the loss


def test_diversity_is_the_divergence_from_the_mean_and_teaches_only_the_experts() -> None:
    logits, temperatures = logits_of(3, 4, 5).double().requires_grad_(), torch.linspace(0.5, 1, 5).double()
    found = diversity(logits, temperatures)
    raw = logits.detach().numpy() / temperatures.numpy()
    softmax = np.exp(raw) / np.exp(raw).sum(axis=2, keepdims=True)
    mean = np.exp(raw.mean(axis=0)) / np.exp(raw.mean(axis=0)).sum(axis=1, keepdims=True)
    expected = 0.75**2 * (mean * np.log(mean / softmax)).sum(axis=(0, 2))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    # d KL(p̄ ‖ softmax(z / T)) / dz = (softmax − p̄) / T where p̄ is constant
    np.testing.assert_allclose(
        gradient.numpy(), 0.75**2 * (softmax - mean) / temperatures.numpy(), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("epoch", [0, 180])
def test_shares_of_the_parts_add_up_to_the_loss_of_the_whole(epoch: int) -> None:
    labels, method = [0, 0, 1, 3, 2, 0, 1], ride()
    logits = logits_of(3, len(labels), 4)
    whole = method.objective.term(step_of(epoch, labels).of(method), "original", logits)
    parts = 0.0
    for part in range(4):  # the last has one sample and one of padding
        step = step_of(epoch, labels, part, 4)
        parts += float(method.objective.term(step.of(method), "original", logits[:, step.plan.positions]))
    assert parts == pytest.approx(float(whole), rel=1e-5)


def test_the_switch_follows_the_length_of_the_run() -> None:
    method = ride(epochs=20, reweight_from_epoch=160)
    logits = logits_of(3, 3, 4)
    losses = [
        float(method.objective.term(step_of(epoch, [0, 2, 3]).of(method), "original", logits)) for epoch in (15, 16)
    ]
    assert losses[0] != pytest.approx(losses[1])
    assert method.derived_options()["reweight_from_epoch"] == 16


def test_under_cmo_both_labels_share_the_loss_and_the_diversity_counts_once() -> None:
    method = ride(mixing="paste")
    model = method.build_model(ModelOptions(width=4), 0).eval()
    background, foreground, lam = [0, 1, 2], [3, 3, 0], 0.25
    boxes = np.tile(np.array([2, 3, 20, 30], dtype=np.int32), (3, 1))
    mix = MixPlan(True, np.full(3, lam), boxes)
    images, pasted = random_images(3), random_images(3, seed=1)
    step = micro_step(5, {"original": (images, background), "foreground": (pasted, foreground)}, mix)
    found = loss_of(method, model, step)
    logits = model(method.context.input_builder.paste(images[0], pasted[0], torch.from_numpy(boxes)))
    margins = 0.5 * (min(COUNTS) / torch.tensor(COUNTS)) ** 0.25

    def classification(labels: list[int]) -> torch.Tensor:
        target = F.one_hot(torch.tensor(labels), 4)
        return sum(F.cross_entropy(z - SCALE * margins * target, torch.tensor(labels)) for z in logits)

    expected = lam * classification(background) + (1 - lam) * classification(foreground)
    expected = expected + method.options.diversity * diversity(logits, torch.ones(4)).mean()
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(found.logits, logits.mean(dim=0), atol=1e-5)


def test_plain_ride_reads_one_stream_and_the_mean_of_the_experts_is_evaluated() -> None:
    method = ride()
    assert [stream.name for stream in method.objective.streams()] == ["original"]
    assert [stream.name for stream in ride(mixing="paste").objective.streams()] == ["original", "foreground"]
    model = method.build_model(ModelOptions(width=4), 0).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(method.objective.eval_logits(model, images), model(images).mean(dim=0))


@pytest.mark.parametrize("options", [{"experts": 1}, {"temperature": 1.0}, {"temperature": -0.1}])
def test_options_without_a_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"method\."):
        RIDEOptions(**options)
