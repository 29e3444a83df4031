"""Random over-sampling: class-weighted draws in place of the shuffled images ("+ ROS" of Park et al., CVPR 2022)."""

from dataclasses import dataclass

from pipeline.plan import Stream
from pipeline.sampling import ClassWeighted
from pipeline.views.view import OneOf, View
from train.methods.parts import Mixing


@dataclass(frozen=True)
class OversampleOptions:
    """How steeply small classes are over-sampled.

    Args:
        weighted_alpha: a sample of class k is drawn with weight n_k^(-alpha), so the class with probability
            proportional to n_k^(1 - alpha): 1 is class-uniform.
    """

    weighted_alpha: float = 1.0


class Oversample(Mixing):
    """As many draws per epoch as there are training samples, with replacement."""

    Options = OversampleOptions

    def streams(self, views: tuple[View | OneOf, ...]) -> tuple[Stream, ...]:
        return (Stream("original", ClassWeighted(self.options.weighted_alpha), views),)
