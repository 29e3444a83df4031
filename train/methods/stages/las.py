"""The second stage of MiSLAS (Zhong et al., CVPR 2021): trains new scales, and slowly continues the classifier.

Like LWS, z = s ∘ (W f + b), but W and b keep their weights and are trained too, at a fraction of the learning rate of
s. With the objective `smoothing` this is the published stage. Features are frozen; if batch normalisation is left in
training mode ("shifted"), its statistics move to the over-sampled stream; on Places-LT only those of the last block.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from train.methods.second_stage import SCALES, SecondStage, SecondStageOptions
from train.models.blocks import last_blocks


@dataclass(frozen=True)
class LASOptions(SecondStageOptions):
    """Learning rates and what else is frozen.

    Args:
        freeze_statistics: also freeze batch normalisation's running statistics, as published only for CIFAR-10.
        moving: where statistics that are not frozen move: all over the network, or only in the last_block of a ResNet.
        classifier_rate: factor on the learning rate of W and b; the scales use the base rate.
    """

    moving: Literal["all", "last_block"] = "all"
    classifier_rate: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.classifier_rate < math.inf:
            raise ValueError(
                f"method.classifier_rate is {self.classifier_rate}, expected a finite number of at least 0"
            )


class LAS(SecondStage):
    """Classifiers and their scales are trained."""

    Options = LASOptions
    scaled = True

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> None:
        super().prepare(model, heads)
        if self.options.moving == "last_block":
            self.blocks = [model.get_submodule(block) for block in last_blocks(model).values()]

    def set_mode(self, model: nn.Module) -> None:
        super().set_mode(model)
        if self.options.moving == "last_block" and not self.options.freeze_statistics:
            model.eval()
            for block in self.blocks:
                block.train()

    def rate_factor(self, parameter_name: str) -> float:
        return 1.0 if parameter_name.endswith(SCALES) else self.options.classifier_rate
