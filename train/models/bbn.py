"""The bilateral-branch network, BBN (Zhou et al., CVPR 2020): one trunk, and two parallel last blocks.

State-dict names are those of the official code: backbone.…, backbone.{cb,rb}_block.…, classifier.{weight,bias}.
"""

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from train.models.build import ModelOptions, part_seed, seeded
from train.models.resnet_cifar import TwoBranchResNet32
from train.models.with_heads import bare_backbone, is_timm_resnet, reset_convolutions

if TYPE_CHECKING:
    from timm.models.resnet import ResNet


class TwoBranchNetwork(nn.Module):
    """Two branches on one trunk, and one linear classifier for both.

    Args:
        backbone: has a method `trunk` and the children `cb_block` (conventional) and `rb_block` (re-balancing).
        features: channels of each branch.
    """

    classifier_name = "classifier"

    def __init__(self, backbone: nn.Module, features: int, classes: int):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(2 * features, classes)

    def forward(self, images: Tensor, reversed_images: Tensor | None = None, share: Tensor | float = 0.5) -> Tensor:
        """Logits (batch, classes) from 2 · [share · f_c, (1 − share) · f_r].

        Args:
            images: for the conventional branch; for both branches if there are no others.
            reversed_images: for the re-balancing branch. They go through the trunk, and its batch norm, separately and
                second.
            share: weight of the conventional branch, a scalar.
        """
        shared = self.backbone.trunk(images)  # type: ignore[operator]
        first = self._branch("cb_block", shared)
        if reversed_images is not None:
            shared = self.backbone.trunk(reversed_images)  # type: ignore[operator]
        second = self._branch("rb_block", shared)
        return self.classifier(2 * torch.cat([share * first, (1 - share) * second], dim=1))

    def _branch(self, name: str, shared: Tensor) -> Tensor:
        """(batch, features)."""
        return self.backbone.get_submodule(name)(shared).mean(dim=(2, 3))


class TwoBranchResNet(nn.Module):
    """A timm ResNet whose last block exists twice; state-dict names are the ResNet's own."""

    def __init__(self, network: "ResNet", seed: int):
        super().__init__()
        *kept, last = network.layer4.children()
        for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"):
            self.add_module(name, network.get_submodule(name))
        self.layer4 = nn.Sequential(*kept)
        self.cb_block, self.rb_block = last, deepcopy(last)
        reset_convolutions(self.rb_block, seed)

    def trunk(self, x: Tensor) -> Tensor:
        """The part before the two branches, (batch, channels, height, width)."""
        for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
        return x


def build_two_branch_network(options: ModelOptions, classes: int, seed: int) -> TwoBranchNetwork:
    """BBN on ResNet-32, or on a timm ResNet.

    Raises:
        ValueError: the backbone is neither, or pretrained weights are requested.
    """
    if options.pretrained:
        raise ValueError("model.pretrained: BBN is trained from scratch; omit it")
    if options.name == "resnet32":
        options = replace(options, name="resnet32-bbn")
    backbone, features = bare_backbone(options, seed)
    if is_timm_resnet(backbone):
        backbone = TwoBranchResNet(backbone, part_seed(seed, "branch"))
    elif isinstance(backbone, TwoBranchResNet32):
        features //= 2
    else:
        raise ValueError(f"model.name is {options.name}; BBN splits resnet32, or a timm ResNet")
    with seeded(part_seed(seed, "heads")):
        return TwoBranchNetwork(backbone, features, classes)
