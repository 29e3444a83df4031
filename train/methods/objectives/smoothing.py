"""Label-aware smoothing, the loss of MiSLAS' second stage (Zhong et al., CVPR 2021)."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from train.losses.smoothing import label_aware_smoothing, smoothing_factors
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs, key
from train.methods.parts import Objective
from train.models.build import ModelOptions, build_model, classifier_name


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

    def __init__(self, options: SmoothingOptions, context: MethodContext):
        super().__init__(options, context)
        factors = smoothing_factors(context.samples_per_class, options.smooth_head, options.smooth_tail)
        self.factors = factors.to(context.device)

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        return build_model(options, len(self.context.samples_per_class), "linear", seed)

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        return (classifier_name(model),)

    def term_inputs(self, plan: MicroPlan, stream: str, share: np.ndarray | float) -> StepInputs:
        return {key(stream, "shares"): share * np.full(len(plan.positions), 1 / plan.global_size(stream))}

    def term(self, step: MicroStep, stream: str, output: Tensor) -> Tensor:
        batch = step.batches[stream]
        rows = label_aware_smoothing(output, batch.labels, self.factors)
        return (step.values[key(stream, "shares")] * batch.weights * rows).sum()
