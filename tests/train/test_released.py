"""Checkpoints in the layout of the official CMO code give the logits of the networks that they were made from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from train.checkpoints.released import Architecture, recognise, state_dict_of
from train.checkpoints.trained import load_trained
from train.models.build import ModelOptions, build_model
from train.models.heads import CosineClassifier

CPU = torch.device("cpu")
PICTURES = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Cosine(nn.Module):
    """The classifier of LDAM, written again: weight (features, classes), columns normalised, no bias."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2048, classes, generator=torch.Generator().manual_seed(1)))

    def forward(self, features: Tensor) -> Tensor:
        return (features / features.norm(dim=1, keepdim=True)) @ (self.weight / self.weight.norm(dim=0, keepdim=True))


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    """torchvision's, with statistics that are not those of the start."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def save_released(path: Path, model: nn.Module, prefix: str, patch: pytest.MonkeyPatch) -> None:
    """As the official code saves on a GPU: every tensor, that of the accuracy too, says that it lies there."""
    state = {prefix + name: value for name, value in model.state_dict().items()}
    with patch.context() as saving:
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"epoch": 100, "state_dict": state, "best_acc1": torch.tensor(52.3)}, path)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("classes", "recipe", "mean", "std"),
    [
        (1000, "imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (8142, "inat", (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),  # of 2018
        (5089, "inat", (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),  # of 2017
    ],
)
@torch.inference_mode()
def test_a_released_resnet50_has_torchvisions_logits(
    resnet50: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    classes: int,
    recipe: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    head: str,
    prefix: str,
) -> None:
    torch.manual_seed(2)
    resnet50.fc = nn.Linear(2048, classes) if head == "linear" else Cosine(classes)
    save_released(tmp_path / "ckpt.best.pth.tar", resnet50, prefix, monkeypatch)
    trained = load_trained(tmp_path / "ckpt.best.pth.tar", CPU)
    assert (trained.classes, trained.preset.name) == (classes, recipe)
    images = (PICTURES.permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found, expected = trained.logits(PICTURES), resnet50(images)
    # Ours are channels last: sums of another order, in float32 over 50 layers.
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("resnet101", torchvision.models.resnet101),
        ("resnet152", torchvision.models.resnet152),
        ("wide_resnet50_2", torchvision.models.wide_resnet50_2),
        ("resnext50_32x4d", torchvision.models.resnext50_32x4d),
    ],
)
def test_the_other_published_backbones_are_recognised_by_their_shapes(
    name: str, make: Callable[..., nn.Module]
) -> None:
    with torch.device("meta"):
        state = make(weights=None, num_classes=7).state_dict()
        architecture = recognise(dict(state))
        assert architecture == Architecture("vanilla", {}, ModelOptions(name), 7)
        built = build_model(architecture.model, 7, "linear", seed=0).state_dict()
    assert {key: value.shape for key, value in built.items()} == {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("width", [16, 8])
def test_resnet32_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Any, width: int) -> None:
    model = build_model(ModelOptions(width=width), 100, head, seed=3).eval()
    save_released(tmp_path / "ckpt.pth.tar", model, "module.", monkeypatch)
    trained = load_trained(tmp_path / "ckpt.pth.tar", CPU)
    assert trained.preset.name == "cifar"
    assert ("resnet32 of width 8, 100" if width == 8 else "resnet32, 100") in trained.description
    images = trained.method.context.input_builder.plain(PICTURES)
    torch.testing.assert_close(trained.logits(PICTURES), model(images))


def test_what_is_no_known_network_is_said() -> None:
    with pytest.raises(ValueError, match="expected a dictionary of tensors"):
        state_dict_of({"epoch": 3})
    with pytest.raises(ValueError, match="not a ResNet-32 or one of resnet50"):
        recognise({"features.0.weight": torch.zeros(3)})
    state = build_model(ModelOptions(width=4), 10, "linear", seed=0).state_dict()
    del state["linear.bias"]
    with pytest.raises(ValueError, match=r"linear\.weight has the shape \(10, 16\) with no bias"):
        recognise(state)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "args": F.relu}, tmp_path / "empty.pth.tar")
    with pytest.raises(ValueError, match=r"empty\.pth\.tar: expected a dictionary of tensors"):
        load_trained(tmp_path / "empty.pth.tar", CPU)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_trained(tmp_path / "none.pt", CPU)


def test_the_cosine_classifier_is_that_of_the_released_files() -> None:
    ours, theirs = CosineClassifier(2048, 5), Cosine(5)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(3, 2048)
    torch.testing.assert_close(ours(features), theirs(features))
