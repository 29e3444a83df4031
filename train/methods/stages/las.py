"""The second stage of MiSLAS (Zhong et al., CVPR 2021): the classifier goes on learning, slowly, beside new scales.

Like LWS, z = s ∘ (W f + b), but W and b keep their weights and are trained too, at a fraction of the rate of s. With
the objective `smoothing` it is the published stage. Features are frozen; where batch normalisation is left in training
mode ("shifted"), its statistics move to the over-sampled stream.
"""

import math
from dataclasses import dataclass

from torch import nn

from train.methods.stages.crt import CRT, CRTOptions
from train.models.build import replace_module
from train.models.heads import ScaledLinear


@dataclass(frozen=True)
class LASOptions(CRTOptions):
    """Rates and what else is frozen.

    Args:
        freeze_statistics: keep batch normalisation's running statistics too; published so on CIFAR-10 alone.
        classifier_rate: factor on the learning rate of W and b; that of the scales is the base rate.
    """

    classifier_rate: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.classifier_rate < math.inf:
            raise ValueError(
                f"method.classifier_rate is {self.classifier_rate}, expected a finite number of at least 0"
            )


class LAS(CRT):
    """Classifiers and their scales are trained."""

    Options = LASOptions

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> nn.Module:
        for head in heads:
            replace_module(model, head, ScaledLinear)
        return super().prepare(model, heads)

    def inherits(self, parameter_name: str) -> bool:
        return True

    def requires(self, parameter_name: str) -> bool:
        return self.in_heads(parameter_name) and not parameter_name.endswith(".scales")

    def rate_factor(self, parameter_name: str) -> float:
        return 1.0 if parameter_name.endswith(".scales") else self.options.classifier_rate
