"""Random over-sampling: class-weighted draws instead of shuffled images ("+ ROS" in Park et al., CVPR 2022)."""

from dataclasses import dataclass
from typing import Literal

from pipeline.plan import Stream
from pipeline.sampling import ClassWeighted, ProgressivelyBalanced, Sampling
from pipeline.views.view import OneOf, View
from train.methods.parts import Mixing


@dataclass(frozen=True)
class OversampleOptions:
    """How strongly small classes are over-sampled.

    Args:
        sampling: weighted (by weighted_alpha, in every epoch) or progressive (from instance-balanced to class-balanced
            over the run).
        weighted_alpha: samples of class k are drawn with weight n_k^(-alpha), so classes with probability proportional
            to n_k^(1 - alpha): 1 is class-uniform.
    """

    sampling: Literal["weighted", "progressive"] = "weighted"
    weighted_alpha: float = 1.0


class Oversample(Mixing):
    """As many draws per epoch as there are training samples, with replacement."""

    Options = OversampleOptions

    def streams(self, views: tuple[View | OneOf, ...]) -> tuple[Stream, ...]:
        return (Stream("original", self._sampling(), views),)

    def _sampling(self) -> Sampling:
        if self.options.sampling == "progressive":
            return ProgressivelyBalanced(self.context.schedule.epochs)
        return ClassWeighted(self.options.weighted_alpha)
