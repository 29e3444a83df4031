"""Trains the whole network in one stage."""

import math
from dataclasses import dataclass

from train.methods.parts import Stage


@dataclass(frozen=True)
class WholeOptions:
    """Learning rates of parts of the network.

    Args:
        features_rate: factor on the learning rate of everything except the classifiers, such as 0.02 for a pretrained
            network.
    """

    features_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.features_rate < math.inf:
            raise ValueError(f"method.features_rate is {self.features_rate}, expected a finite number of at least 0")


class Whole(Stage):
    """Everything is trained; everything in `model.init_from` is inherited."""

    Options = WholeOptions

    def rate_factor(self, parameter_name: str) -> float:
        return 1.0 if self.in_heads(parameter_name) else self.options.features_rate
