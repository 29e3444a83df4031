"""The whole network, in one go."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from train.methods.base import MethodContext
from train.methods.parts import Stage


@dataclass(frozen=True)
class WholeOptions:
    """How fast parts of the network learn.

    Args:
        features_rate: factor on the learning rate of everything but the classifiers, such as 0.02 for a pretrained
            network.
    """

    features_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.features_rate < math.inf:
            raise ValueError(f"method.features_rate is {self.features_rate}, expected a finite number of at least 0")


class Whole(Stage):
    """Everything is trained; what `model.init_from` has is inherited."""

    Options = WholeOptions

    def __init__(self, options: Any, context: MethodContext):
        super().__init__(options, context)
        self.heads: tuple[str, ...] = ()

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> nn.Module:
        self.heads = heads
        return model

    def rate_factor(self, parameter_name: str) -> float:
        in_heads = parameter_name.startswith(tuple(f"{head}." for head in self.heads))
        return 1.0 if in_heads else self.options.features_rate
