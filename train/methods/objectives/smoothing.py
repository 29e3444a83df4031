"""Label-aware smoothing, the loss of MiSLAS' second stage (Zhong et al., CVPR 2021)."""

from dataclasses import dataclass

from torch import Tensor

from train.losses.smoothing import label_aware_smoothing, smoothing_factors
from train.methods.base import MethodContext
from train.methods.parts import Mixing, Objective


@dataclass(frozen=True)
class SmoothingOptions:
    """How much labels are smoothed.

    Args:
        smooth_head: epsilon of the largest class.
        smooth_tail: epsilon of the smallest.
    """

    smooth_head: float = 0.4
    smooth_tail: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.smooth_tail <= self.smooth_head < 1:
            raise ValueError(
                f"method: smooth_head is {self.smooth_head}, smooth_tail {self.smooth_tail}; "
                "expected 0 <= smooth_tail <= smooth_head < 1"
            )


class Smoothing(Objective):
    """One linear classifier."""

    Options = SmoothingOptions

    def __init__(self, options: SmoothingOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        factors = smoothing_factors(context.samples_per_class, options.smooth_head, options.smooth_tail)
        self.factors = factors.to(context.device)

    def row_losses(self, output: Tensor, labels: Tensor) -> Tensor:
        return label_aware_smoothing(output, labels, self.factors)
