"""ResNet-32 for 32-pixel images, as in the LDAM and CMO code.

Three stages of five basic blocks, parameter-free shortcuts (option A of He et al., CVPR 2016), state-dict names of the
published checkpoints: conv1, bn1, layer{1,2,3}.{0..4}.{conv1,bn1,conv2,bn2}, linear.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.padding = (planes - in_planes) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel, padded with zero channels, half of them on each side."""
        if self.stride == 1 and self.padding == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def stage(in_planes: int, planes: int, stride: int, blocks: int = 5) -> nn.Sequential:
    """A stage of the network; only its first block has a stride and widens."""
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


def kaiming_init(module: nn.Module) -> None:
    """Kaiming-normal (fan-in, gain √2) weights of convolutions and linear layers; biases keep torch's default."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


class ResNet32(nn.Module):
    """ResNet-32. `width` is the number of channels of the first stage: 16 as published, 64 for GLMC's variant."""

    classifier_name = "linear"

    def __init__(self, classes: int, width: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(width, width, 1)
        self.layer2 = stage(width, 2 * width, 2)
        self.layer3 = stage(2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)
        self.apply(kaiming_init)

    def maps(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) → (batch, 4 × width, height / 4, width / 4), whose mean the classifier sees."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def features(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) → (batch, 4 × width)."""
        return self.maps(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


class TwoBranchResNet32(nn.Module):
    """ResNet-32 with two parallel last blocks: the backbone of BBN (Zhou et al., CVPR 2020).

    LADE (Hong et al., CVPR 2021) and Causal Norm (Tang et al., NeurIPS 2020) train it on CIFAR as a plain network with
    twice as many features. State-dict names are those of ResNet-32, with layer3.4 as cb_block and rb_block.
    """

    classifier_name = "linear"

    def __init__(self, classes: int, width: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(width, width, 1)
        self.layer2 = stage(width, 2 * width, 2)
        self.layer3 = stage(2 * width, 4 * width, 2, blocks=4)
        self.cb_block = BasicBlock(4 * width, 4 * width, 1)
        self.rb_block = BasicBlock(4 * width, 4 * width, 1)
        self.apply(kaiming_init)
        self.linear: nn.Module = nn.Linear(8 * width, classes)  # with torch's default weights

    def trunk(self, x: Tensor) -> Tensor:
        """The part before the two branches, (batch, 4 × width, height / 4, width / 4)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward(self, x: Tensor) -> Tensor:
        shared = self.trunk(x)
        branches = torch.cat([self.cb_block(shared), self.rb_block(shared)], dim=1)
        return self.linear(branches.mean(dim=(2, 3)))
