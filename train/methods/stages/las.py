"""The second stage of MiSLAS (Zhong et al., CVPR 2021): trains new scales, and slowly continues the classifier.

Like LWS, z = s ∘ (W f + b), but W and b keep their weights and are trained too, at a fraction of the learning rate of
s. With the objective `smoothing` this is the published stage. Features are frozen; if batch normalisation is left in
training mode ("shifted"), its statistics move to the over-sampled stream.
"""

import math
from dataclasses import dataclass

from train.methods.second_stage import SCALES, SecondStage, SecondStageOptions


@dataclass(frozen=True)
class LASOptions(SecondStageOptions):
    """Learning rates and what else is frozen.

    Args:
        freeze_statistics: also freeze batch normalisation's running statistics, as published only for CIFAR-10.
        classifier_rate: factor on the learning rate of W and b; the scales use the base rate.
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
