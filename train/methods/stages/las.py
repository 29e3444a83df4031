"""The second stage of MiSLAS (Zhong et al., CVPR 2021): the classifier goes on learning, slowly, beside new scales.

Like LWS, z = s ∘ (W f + b), but W and b keep their weights and are trained too, at a fraction of the rate of s. With
the objective `smoothing` it is the published stage. Features are frozen; where batch normalisation is left in training
mode ("shifted"), its statistics move to the over-sampled stream.
"""

import math
from dataclasses import dataclass

from train.methods.second_stage import SCALES, SecondStage, SecondStageOptions


@dataclass(frozen=True)
class LASOptions(SecondStageOptions):
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


class LAS(SecondStage):
    """Classifiers and their scales are trained."""

    Options = LASOptions
    scaled = True

    def rate_factor(self, parameter_name: str) -> float:
        return 1.0 if parameter_name.endswith(SCALES) else self.options.classifier_rate
