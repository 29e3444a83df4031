"""Networks: shapes, parameters, names and values of the published ones."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from train.models.build import ModelOptions, build_model, classifier_name
from train.models.resnet_cifar import ResNet32
from train.models.semantic import build_network


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("classes", "head", "expected"),
    [(10, "linear", 464_154), (100, "linear", 470_004), (10, "cosine", 464_144), (100, "cosine", 469_904)],
)
def test_resnet32_parameters(classes: int, head: str, expected: int) -> None:
    assert parameters(build_model(ModelOptions(), classes, head, seed=0)) == expected


def test_resnet32_state_has_the_published_keys() -> None:
    state = build_model(ModelOptions(), 100, "linear", seed=0).state_dict()
    assert len(state) == 188
    assert state["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    assert state["linear.weight"].shape == (100, 64)
    assert not [name for name in state if "shortcut" in name or "downsample" in name]
    cosine = build_model(ModelOptions(), 100, "cosine", seed=0).state_dict()
    assert cosine["linear.weight"].shape == (64, 100)
    assert "linear.bias" not in cosine


def test_resnet32_forward_gives_the_values_of_the_official_code() -> None:
    model = ResNet32(10).double().eval()
    state = model.state_dict()
    for name, value in state.items():
        if value.ndim >= 2:
            filled = 0.1 * np.cos(0.37 * np.arange(value.numel()) + 0.5)
            value.copy_(torch.from_numpy(filled.astype(np.float32)).reshape(value.shape))
        elif name == "linear.bias":
            value.copy_(0.01 * torch.arange(10))
        elif name.endswith(("weight", "running_var")):
            value.fill_(1)
        else:
            value.zero_()
    images = torch.from_numpy(np.sin(0.01 * np.arange(3 * 32 * 32))).reshape(1, 3, 32, 32)
    expected = [-394.654041, -294.241892, 325.359244, 370.919780, -237.931613, -426.897181, 137.459033, 459.382811]
    with torch.no_grad():
        logits = model(images)[0].tolist()
    assert logits == pytest.approx([*expected, -29.122440, -466.101893], rel=1e-6)


def test_resnet32_initialisation() -> None:
    model = build_model(ModelOptions(), 100, "linear", seed=0)
    assert isinstance(model, ResNet32)
    weight = model.layer3[1].conv1.weight
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)  # Kaiming normal, fan-in
    assert float(model.linear.bias.abs().max()) <= 1 / 8
    cosine = build_model(ModelOptions(), 100, "cosine", seed=0).get_submodule("linear").weight
    torch.testing.assert_close(cosine.norm(dim=0), torch.ones(100))


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (build_model(ModelOptions(width=4), 4, "linear", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(first["conv1.weight"], again["conv1.weight"])
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(
    ("name", "classes", "expected", "entries"),
    [
        ("resnet50", 1000, 25_557_032, 320),
        ("resnet50", 8142, 40_190_990, 320),
        ("resnet101", 1000, 44_549_160, 626),
        ("resnet152", 1000, 60_192_808, 932),
        ("wide_resnet50_2", 1000, 68_883_240, 320),
        ("resnext50_32x4d", 1000, 25_028_904, 320),
    ],
)
def test_timm_backbones_are_torchvisions(name: str, classes: int, expected: int, entries: int) -> None:
    with torch.device("meta"):
        model = build_model(ModelOptions(name=name), classes, "linear", seed=0)
        reference = torchvision.models.get_model(name, weights=None, num_classes=classes)
    assert parameters(model) == expected
    state = model.state_dict()
    assert len(state) == entries
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in reference.state_dict().items()}


def test_timm_resnets_do_not_start_with_dead_residual_branches() -> None:
    model = build_model(ModelOptions(name="resnet26"), 10, "linear", seed=0)
    scales = [value for name, value in model.state_dict().items() if name.endswith("bn3.weight")]
    assert scales
    assert all((scale == 1).all() for scale in scales)


def test_a_cosine_head_replaces_a_timm_classifier() -> None:
    model = build_model(ModelOptions(name="resnet18"), 7, "cosine", seed=0)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7)
    assert float(logits.abs().max()) <= 1 + 1e-6


def test_unknown_names_are_refused_with_similar_ones() -> None:
    with pytest.raises(ValueError, match=r"similar names .*resnet50"):
        ModelOptions(name="resnet5O")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050"])  # head, classifier
def test_a_network_that_says_its_features_may_call_its_classifier_as_it_likes(name: str) -> None:
    model = build_network(ModelOptions(name, image_size=32 if name.startswith("vit") else None), 7, seed=0).eval()
    features, logits = model(torch.randn(2, 3, 32, 32))
    assert torch.equal(model.classifier(features), logits)
    assert model.get_submodule(classifier_name(model)) is model.head
    plain = build_model(ModelOptions(name, image_size=32 if name.startswith("vit") else None), 7, "linear", seed=0)
    assert model.state_dict().keys() == plain.state_dict().keys()
