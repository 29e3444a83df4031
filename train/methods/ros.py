"""Random over-sampling: the class-weighted stream in place of the original one ("+ ROS" of Park et al., CVPR 2022)."""

from dataclasses import dataclass

from pipeline.plan import Stream
from pipeline.sampling import ClassWeighted
from train.methods.vanilla import Vanilla, VanillaOptions


@dataclass(frozen=True)
class ROSOptions(VanillaOptions):
    """How steeply small classes are over-sampled.

    Args:
        weighted_alpha: a sample of class k is drawn with weight n_k^(-alpha), so the class with probability
            proportional to n_k^(1 - alpha): 1 is class-uniform.
    """

    weighted_alpha: float = 1.0


class ROS(Vanilla):
    """As many draws an epoch as there are training samples, with replacement."""

    Options = ROSOptions

    def streams(self) -> tuple[Stream, ...]:
        return (Stream("original", ClassWeighted(self.options.weighted_alpha), (self.context.view,)),)
