"""Checkpoints in the layouts of RIDE's and NCL's code: the experts' mean, from networks that are put together here."""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50, resnet101, resnext50_32x4d
from torchvision.models.resnet import Bottleneck, ResNet

from tests.train.test_released_layouts import with_statistics
from train.checkpoints.released import evaluated_weights, recognise, state_dict_of
from train.checkpoints.trained import load_trained

CPU = torch.device("cpu")
PICTURES = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STATISTICS = {
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inat": ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
}

# ------------------------------------------------------------------------------------- their networks, written again


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.new, self.stride = after - before, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        near = x[:, :, :: self.stride, :: self.stride]
        nothing = near.new_zeros(len(near), self.new // 2, *near.shape[2:])
        return (y + torch.cat([nothing, near, nothing], dim=1)).relu()


def blocks(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(before, after, stride), *(Block(after, after, 1) for _ in range(4)))


class Backbone32(nn.Module):
    """NCL's ResNet-32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.layer1, self.layer2 = blocks(width, width, 1), blocks(width, 2 * width, 2)
        self.layer3 = blocks(2 * width, 4 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))


def backbone_224(make: Callable[..., ResNet]) -> nn.Module:
    network = make(weights=None)
    network.fc = nn.Identity()
    return network


class NormedLinear(nn.Module):
    """RIDE's: (features, classes)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, classes))

    def forward(self, x: Tensor) -> Tensor:
        return (x / x.norm(dim=1, keepdim=True)) @ (self.weight / self.weight.norm(dim=0))


class Cosine(nn.Module):
    """NCL's: (classes, features), a scale that is not stored, and a bias."""

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(classes, features)), nn.Parameter(torch.randn(classes))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight / self.weight.norm(dim=1, keepdim=True)
        return self.scale * (x / x.norm(dim=1, keepdim=True)) @ w.T + self.bias


class RIDE(nn.Module):
    """RIDE's `backbone`: shared modules, and those of the experts in lists."""

    def __init__(self, shared: dict[str, nn.Module], experts: dict[str, list[nn.Module]], routing: bool) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(shared)
        self.backbone.update({name: nn.ModuleList(parts) for name, parts in experts.items()})
        self.order = tuple(experts)
        if routing:
            count, classes = len(experts["linears"]), experts["linears"][0].weight.shape[1]
            features = len(experts["linears"][0].weight)
            hidden = (nn.Linear(features, 16) for _ in range(count - 1))
            self.backbone["expert_help_pred_hidden_fcs"] = nn.ModuleList(hidden)
            self.backbone["expert_help_pred_fc"] = nn.Linear(16 + min(30, classes), 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.backbone
        x = parts["bn1"](parts["conv1"](x)).relu()
        if "layer2" in parts:
            x = F.max_pool2d(x, 3, 2, 1)
        x = parts["layer1"](x)
        x = parts["layer2"](x) if "layer2" in parts else x
        before, last, linears = (parts[name] for name in self.order)
        logits = [30 * head(b(a(x)).mean((2, 3))) for a, b, head in zip(before, last, linears, strict=True)]
        return sum(logits) / len(logits)


def ride_32(experts: int, classes: int, second: int = 24, third: int = 48, routing: bool = False) -> RIDE:
    shared = {"conv1": nn.Conv2d(3, 16, 3, 1, 1, bias=False), "bn1": nn.BatchNorm2d(16), "layer1": blocks(16, 16, 1)}
    own = {
        "layer2s": [blocks(16, second, 2) for _ in range(experts)],
        "layer3s": [blocks(second, third, 2) for _ in range(experts)],
        "linears": [NormedLinear(third, classes) for _ in range(experts)],
    }
    return with_statistics(RIDE(shared, own, routing))


def ride_224(make: Callable[..., ResNet], experts: int, classes: int, third: int, fourth: int) -> RIDE:
    network = make(weights=None)
    counts = (len(network.layer3), len(network.layer4))
    shared = {name: getattr(network, name) for name in ("conv1", "bn1", "layer1", "layer2")}

    def stage(before: int, planes: int, count: int) -> nn.Module:
        network.inplanes = before
        return network._make_layer(Bottleneck, planes, count, stride=2)

    own = {
        "layer3s": [stage(512, third, counts[0]) for _ in range(experts)],
        "layer4s": [stage(4 * third, fourth, counts[1]) for _ in range(experts)],
        "linears": [NormedLinear(4 * fourth, classes) for _ in range(experts)],
    }
    return with_statistics(RIDE(shared, own, routing=True))


class NCL(nn.Module):
    """NCL's network; `contrastive` moves the classifiers aside and adds the branch."""

    def __init__(self, make: Callable[[], nn.Module], heads: list[nn.Module], features: int, contrastive: bool) -> None:
        super().__init__()
        self.backbone = nn.ModuleList(make() for _ in heads)
        self.heads = "classifier_ce" if contrastive else "classifier"
        setattr(self, self.heads, nn.ModuleList(heads))
        if contrastive:
            self.backbone_MA = nn.ModuleList(make() for _ in heads)
            for name in ("classifier", "classifier_MA"):
                layers = (nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 8))
                setattr(self, name, nn.ModuleList(nn.Sequential(*layers) for _ in heads))
            self.MOCO = nn.ModuleList(nn.Module() for _ in heads)
            for queue in self.MOCO:
                queue.register_buffer("queue", torch.randn(8, 16))
                queue.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        with_statistics(self)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.backbone, getattr(self, self.heads), strict=True)
        return torch.stack([head(backbone(x)) for backbone, head in pairs]).mean(0)


def ncl_32(classes: int, experts: int = 3, contrastive: bool = False) -> NCL:
    heads = [nn.Linear(64, classes) for _ in range(experts)]
    return NCL(lambda: Backbone32(16), heads, 64, contrastive)


def ncl_224(
    make: Callable[..., ResNet], classes: int, scale: float, experts: int = 2, contrastive: bool = False
) -> NCL:
    heads = [Cosine(2048, classes, scale) for _ in range(experts)]
    return NCL(lambda: backbone_224(make), heads, 2048, contrastive)


# ------------------------------------------------------------------------------------------------------ their logits


def check(path: Path, network: nn.Module, recipe: str, described: str) -> None:
    """The file gives the network's logits, on images normalised as is right for it."""
    trained = load_trained(path, CPU)
    assert trained.preset.name == recipe
    assert trained.description == f"released {described}"
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[recipe])
    expected = network((PICTURES.permute(0, 3, 1, 2) / 255 - mean) / std)
    found = trained.logits(PICTURES)
    assert expected.std() > 1e-3  # else any network would do
    assert (found - expected).abs().max() < 5e-5 * expected.abs().max()


def state_of(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: value for name, value in network.state_dict().items()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("experts", "classes", "widths"), [(3, 100, (24, 48)), (2, 10, (32, 64))])
@torch.inference_mode()
def test_a_released_ride_resnet32_votes_with_all_its_experts(
    tmp_path: Path, experts: int, classes: int, widths: tuple[int, int], prefix: str
) -> None:
    network = ride_32(experts, classes, *widths, routing=True)
    content = {"arch": "ResNet32Model", "epoch": 200, "state_dict": state_of(network, prefix), "monitor_best": 0.48}
    torch.save(content, tmp_path / "checkpoint-epoch200.pth")
    options = f"experts {experts}, reduced {widths[0] == 24}"
    described = f"resnet32, {classes} classes, evaluated as ride ({options})"
    check(tmp_path / "checkpoint-epoch200.pth", network, "cifar", described)


@pytest.mark.parametrize(
    ("make", "name", "experts", "widths"),
    [
        (resnet50, "resnet50", 4, (192, 384)),
        (resnet50, "resnet50", 2, (256, 512)),
        (resnext50_32x4d, "resnext50_32x4d", 3, (192, 384)),
    ],
)
@torch.inference_mode()
def test_a_released_ride_network_for_224_pixels_votes_with_all_its_experts(
    tmp_path: Path, make: Callable[..., ResNet], name: str, experts: int, widths: tuple[int, int]
) -> None:
    network = ride_224(make, experts, 7, *widths)
    torch.save({"state_dict": state_of(network)}, tmp_path / "model.pth")
    options = f"experts {experts}, reduced {widths[0] == 192}"
    check(tmp_path / "model.pth", network, "imagenet", f"{name}, 7 classes, evaluated as ride ({options})")


@torch.inference_mode()
def test_weights_of_16_bits_are_evaluated_in_32(tmp_path: Path) -> None:
    network = ride_32(3, 100)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    torch.save({n: v.half() if v.is_floating_point() else v for n, v in state_of(network).items()}, tmp_path / "m.pth")
    check(tmp_path / "m.pth", network, "cifar", "resnet32, 100 classes, evaluated as ride (experts 3, reduced True)")


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("contrastive", [False, True])
@torch.inference_mode()
def test_a_released_ncl_resnet32_is_evaluated_with_its_class_heads(
    tmp_path: Path, contrastive: bool, prefix: str
) -> None:
    network = ncl_32(100, 3, contrastive)
    state = state_of(network, prefix)
    assert len(state) == (1152 if contrastive else 564)  # as in the official files
    torch.save({"state_dict": state, "epoch": 400, "best_epoch": 398, "scheduler": {}}, tmp_path / "epoch_400.pth")
    check(tmp_path / "epoch_400.pth", network, "cifar", "resnet32, 100 classes, evaluated as ncl (experts 3)")


@pytest.mark.parametrize(
    ("make", "name", "classes", "scale", "experts", "contrastive", "recipe"),
    [
        (resnet50, "resnet50", 20, 16.0, 3, False, "imagenet"),
        (resnet50, "resnet50", 8142, 32.0, 1, False, "inat"),
        (resnet101, "resnet101", 365, 16.0, 1, True, "imagenet"),
    ],
)
@torch.inference_mode()
def test_a_released_ncl_network_for_224_pixels_has_the_published_cosine_heads(
    tmp_path: Path,
    make: Callable[..., ResNet],
    name: str,
    classes: int,
    scale: float,
    experts: int,
    contrastive: bool,
    recipe: str,
) -> None:
    network = ncl_224(make, classes, scale, experts, contrastive)
    torch.save({"state_dict": state_of(network, "module.")}, tmp_path / "best.pth")
    options = f"experts {experts}, head cosine, cosine_scale {scale}"
    check(tmp_path / "best.pth", network, recipe, f"{name}, {classes} classes, evaluated as ncl ({options})")


# ---------------------------------------------------------------------------------- what else is in a file, or is not


class Settings:
    """Stands for RIDE's settings: an object of a class that is not here, and would do something when it is made."""

    made = 0

    def __init__(self) -> None:
        self.folder = PurePosixPath("saved/models")
        self.options = {"arch": {"type": "ResNet32Model"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Settings.made += 1


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.call


@pytest.mark.parametrize("extra", [Settings(), np.float64(0.54), {"path": PurePosixPath("a"), "kind": F.relu}])
@torch.inference_mode()
def test_other_objects_in_a_file_are_neither_needed_nor_made(tmp_path: Path, extra: Any) -> None:
    network = ride_32(2, 10)
    torch.save({"config": extra, "state_dict": state_of(network)}, tmp_path / "model.pth")
    check(tmp_path / "model.pth", network, "cifar", "resnet32, 10 classes, evaluated as ride (experts 2, reduced True)")
    assert Settings.made == 0


@torch.inference_mode()
def test_a_file_calls_nothing(tmp_path: Path) -> None:
    called, network = tmp_path / "called", ride_32(2, 10)
    content = {"state_dict": state_of(network), "config": Calls(exec, f"open({str(called)!r}, 'w')")}
    torch.save(content, tmp_path / "exec.pth")
    load_trained(tmp_path / "exec.pth", CPU)
    torch.save({**content, "config": Calls(os.system, f"touch {called}")}, tmp_path / "system.pth")
    with pytest.raises(ValueError, match=r"system\.pth: damaged, or not a checkpoint of tensors"):
        load_trained(tmp_path / "system.pth", CPU)
    assert not called.exists()


@torch.inference_mode()
def test_an_old_file_with_other_objects_is_refused_and_the_advice_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, old = ride_32(2, 10), tmp_path / "old.pth"
    content = {"config": PurePosixPath("a"), "state_dict": state_of(network)}
    torch.save(content, old, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="save only its weights") as refused:
        load_trained(old, CPU)
    (advice,) = re.findall(r"torch\.save\(.*\)", str(refused.value))
    monkeypatch.chdir(tmp_path)
    exec(advice, {"torch": torch})
    described = "resnet32, 10 classes, evaluated as ride (experts 2, reduced True)"
    check(tmp_path / "weights.pt", network, "cifar", described)


def spoiled(network: nn.Module, changes: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Its weights with tensors replaced, or left out."""
    state = {**state_of(network), **changes}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("make", "changes", "told"),
    [
        (ride_32, {"backbone.linears.0.bias": torch.zeros(10)}, "a bias, expected RIDE's cosine classifier"),
        (ride_32, {"backbone.linears.0.weight": torch.zeros(10, 48)}, r"\(10, 48\) and no bias.*\(48 or 64"),
        (ride_32, {"backbone.linears.1.weight": None}, r"experts is 1, expected at least 2"),
        (ride_32, {"backbone.layer3s.1.4.bn2.bias": None}, "do not exactly match resnet32, 10 classes"),
        (ride_32, {"backbone.layer1.4.conv1.weight": torch.zeros(8, 8, 3, 3)}, "do not exactly match resnet32"),
        (ncl_32, {"classifier.0.weight": None}, r"no tensor classifier\.0\.weight"),
        (ncl_32, {"classifier.1.bias": None}, "do not exactly match resnet32, 10 classes, evaluated as ncl"),
        (ncl_32, {"backbone.0.layer4.0.conv1.weight": torch.zeros(1)}, "not a ResNet-32 or one of resnet50"),
    ],
)
def test_what_is_not_quite_such_a_network_is_said(
    tmp_path: Path, make: Callable[..., nn.Module], changes: dict[str, Tensor | None], told: str
) -> None:
    network = make(2, 10) if make is ride_32 else make(10, 2)
    torch.save({"state_dict": spoiled(network, changes)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=rf"wrong\.pth: .*{told}"):
        load_trained(tmp_path / "wrong.pth", CPU)


def test_a_file_without_a_classifier_is_said() -> None:
    state = {f"module.{name}": value for name, value in Backbone32(16).state_dict().items()}
    with pytest.raises(ValueError, match=r"no tensor linear\.weight.*complete network"):
        recognise(evaluated_weights(state_dict_of({"state_dict": state})))
