"""RIDE's networks (Wang et al., ICLR 2021): shared early stages, and the last two stages once per expert.

State-dict names are those of the official code: backbone.{conv1,bn1,layer1,…}, backbone.layer3s.EXPERT,
backbone.layer4s.EXPERT, backbone.linears.EXPERT.weight; ResNet-32 has one stage less (layer2s, layer3s).
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.build import ModelOptions, build_model, part_seed, seeded
from train.models.heads import CosineClassifier
from train.models.resnet_cifar import ResNet32, kaiming_init, stage

if TYPE_CHECKING:
    from timm.models.resnet import ResNet

SCALE = 30.0  # factor on the cosines, inside the network; s in the official code


class RIDEResNet32(nn.Module):
    """ResNet-32 with a separate second and third stage per expert; 24 and 48 channels when reduced."""

    def __init__(self, shared: ResNet32, width: int, experts: int, classes: int, reduced: bool):
        super().__init__()
        second, third = (3 * width // 2, 3 * width) if reduced else (2 * width, 4 * width)
        self.conv1, self.bn1, self.layer1 = shared.conv1, shared.bn1, shared.layer1
        self.layer2s = nn.ModuleList(stage(width, second, 2) for _ in range(experts))
        self.layer3s = nn.ModuleList(stage(second, third, 2) for _ in range(experts))
        self.linears = nn.ModuleList(CosineClassifier(third, classes) for _ in range(experts))
        for part in (self.layer2s, self.layer3s):
            part.apply(kaiming_init)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled logits, (experts, batch, classes)."""
        shared = self.layer1(F.relu(self.bn1(self.conv1(images))))
        return _logits(shared, self.layer2s, self.layer3s, self.linears)


class RIDEResNet(nn.Module):
    """A bottleneck ResNet with a separate third and fourth stage per expert; 3/4 as wide when reduced."""

    def __init__(self, shared: "ResNet", experts: int, classes: int, reduced: bool):
        super().__init__()
        third, fourth = (192, 384) if reduced else (256, 512)
        self.conv1, self.bn1, self.act1, self.maxpool = shared.conv1, shared.bn1, shared.act1, shared.maxpool
        self.layer1, self.layer2 = shared.layer1, shared.layer2
        first = shared.layer1[0].conv2
        groups, group_width = first.groups, first.out_channels // first.groups

        def stages(in_channels: int, planes: int, blocks: int) -> nn.ModuleList:
            made = (_bottlenecks(in_channels, planes, blocks, groups, group_width) for _ in range(experts))
            return nn.ModuleList(made)

        self.layer3s = stages(8 * 64, third, len(shared.layer3))
        self.layer4s = stages(4 * third, fourth, len(shared.layer4))
        self.linears = nn.ModuleList(CosineClassifier(4 * fourth, classes) for _ in range(experts))

    def forward(self, images: Tensor) -> Tensor:
        """Scaled logits, (experts, batch, classes)."""
        shared = self.layer2(self.layer1(self.maxpool(self.act1(self.bn1(self.conv1(images))))))
        return _logits(shared, self.layer3s, self.layer4s, self.linears)


def _logits(shared: Tensor, *parts: nn.ModuleList) -> Tensor:
    """Run each expert's last two stages and its classifier on the shared feature maps."""

    def expert(before_last: nn.Module, last: nn.Module, linear: nn.Module) -> Tensor:
        return SCALE * linear(last(before_last(shared)).mean(dim=(2, 3)))

    return torch.stack([expert(*modules) for modules in zip(*parts, strict=True)])


def _bottlenecks(in_channels: int, planes: int, blocks: int, groups: int, group_width: int) -> nn.Sequential:
    """A stage that halves the resolution; convolutions Kaiming-normal over their fan-out."""
    from timm.models.resnet import Bottleneck, downsample_conv  # slow to import, and ResNet-32 does not need it

    out = planes * Bottleneck.expansion
    width = {"cardinality": groups, "base_width": group_width}
    first = Bottleneck(in_channels, planes, 2, downsample_conv(in_channels, out, kernel_size=1, stride=2), **width)
    layers = nn.Sequential(first, *(Bottleneck(out, planes, **width) for _ in range(blocks - 1)))
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return layers


def _has_bottlenecks(network: nn.Module) -> "TypeGuard[ResNet]":
    from timm.models.resnet import Bottleneck, ResNet

    return isinstance(network, ResNet) and isinstance(network.layer1[0], Bottleneck)


def build_ride(options: ModelOptions, classes: int, experts: int, reduced: bool, seed: int) -> nn.Module:
    """A network of experts on resnet32, resnet50 or its deeper and grouped variants: images → scaled logits of each.

    Raises:
        ValueError: another backbone, or ImageNet weights, which do not fit experts of a different width.
    """
    if options.pretrained:
        raise ValueError("model.pretrained: RIDE's experts are trained from scratch; omit it")
    shared = build_model(options, 1, "linear", seed)
    with seeded(part_seed(seed, "experts")):
        if isinstance(shared, ResNet32):
            backbone: nn.Module = RIDEResNet32(shared, options.width, experts, classes, reduced)
        elif _has_bottlenecks(shared):
            backbone = RIDEResNet(shared, experts, classes, reduced)
        else:
            raise ValueError(
                f"model.name {options.name!r}: RIDE splits resnet32, or a timm ResNet of bottlenecks such as resnet50 "
                "or resnext50_32x4d"
            )
    return nn.Sequential(OrderedDict(backbone=backbone))
