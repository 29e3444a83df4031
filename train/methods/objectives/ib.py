"""Influence-balanced loss, IB (Park et al., ICCV 2021): cross entropy first, then samples weighted by their influence.

Where code and paper differ, the formulas follow the released code: the class weights have mean 1, α is outside, and the
factor α / (g h + 0.001) is differentiated like the rest. The loss is a mean over samples; unlike with other class
weights here, its denominator is unweighted.

If two images are mixed, the loss is lam · IB(·, background) + (1 − lam) · IB(·, foreground), each with its own g and
class weight, and the same features.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from shards.class_counts import effective_number_weights, power_law_weights
from train.losses.criterion import EFFECTIVE_NUMBER_BETA
from train.losses.influence import influence_balanced
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs
from train.methods.parts import Mixing, Objective
from train.models.build import ModelOptions
from train.models.semantic import build_network


@dataclass(frozen=True)
class IBOptions:
    """Scale and start of the loss.

    Args:
        ib_alpha: factor of the loss. On a new data set, choose it so that at the switch the loss has the same level as
            the cross entropy before (the authors' advice).
        ib_weights: inverse (1 / n, as published for IB) or effective (effective numbers; the authors' IB + CB).
        ib_focal: exponent of the focal variant; 0 disables it, the authors' IBFocal uses 1.
        ib_from_epoch: first zero-based epoch of the loss, for a run of schedule.for_epochs epochs; before it is plain
            cross entropy.
    """

    ib_alpha: float = 1000.0
    ib_weights: Literal["inverse", "effective"] = "inverse"
    ib_focal: float = 0.0
    ib_from_epoch: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.ib_alpha < math.inf or not 0 <= self.ib_focal < math.inf:
            raise ValueError(
                f"method: ib_alpha is {self.ib_alpha}, ib_focal {self.ib_focal}; expected above 0, and at least 0"
            )


class IB(Objective):
    """One classifier; its inputs are part of the loss."""

    Options = IBOptions

    def __init__(self, options: IBOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        counts = context.samples_per_class
        if options.ib_weights == "inverse":
            weights = power_law_weights(counts, 1.0)
        else:
            weights = effective_number_weights(counts, EFFECTIVE_NUMBER_BETA)
        self.class_weights = torch.from_numpy(weights.astype(np.float32)).to(context.device)
        self.from_epoch = context.schedule.rescaled(options.ib_from_epoch)

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        return build_network(options, self.classes, seed)

    def step_inputs(self, plan: MicroPlan) -> StepInputs:
        """Whether this is present determines the kind of step."""
        return {"influence": np.array(1.0)} if plan.step.epoch >= self.from_epoch else {}

    def term(self, step: MicroStep, stream: str, output: tuple[Tensor, Tensor]) -> Tensor:
        if "influence" not in step.values:
            return super().term(step, stream, output)
        o, (features, logits) = self.options, output
        labels = step.batches[stream].labels
        rows = influence_balanced(logits, features, labels, self.class_weights, o.ib_alpha, o.ib_focal)
        return self.weighted(step, stream, rows)

    def prediction(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[1]

    def derived_options(self) -> dict[str, Any]:
        return {"ib_from_epoch": self.from_epoch}
