"""Bilateral-branch network, BBN (Zhou et al., CVPR 2020): one branch for the data as is, one for reversed class sizes.

One branch sees every image once per epoch, the other as many draws with class probabilities proportional to 1 / n.
Their features are weighted by λ and 1 − λ and share one classifier. In epoch e (from 0) of E, λ = 1 − (e / E')², so
weight moves from the first branch to the second:

    z = 2 · [λ f_c, (1 − λ) f_r] Wᵀ + b,    L = λ CE(z, y) + (1 − λ) CE(z, y_reversed)

A test image goes through both branches, with λ = ½. The factor 2 and the bias are those of the released code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from pipeline.plan import Stream
from pipeline.sampling import ClassWeighted, Shuffled
from train.losses.functions import cross_entropy
from train.methods.base import MicroPlan, MicroStep, StepInputs, StepOutput
from train.methods.parts import Objective, Stage
from train.models.bbn import build_two_branch_network
from train.models.build import ModelOptions

REVERSED = "reversed"


@dataclass(frozen=True)
class BBNOptions:
    """The shift of weight between the branches.

    Args:
        share_epochs: E'; by default the epochs of the run. The official code uses 100 for 90 epochs and 200 for 180.
        reversed_alpha: samples of class k are drawn into the reversed stream with weight n_k^(-alpha), so classes with
            probability proportional to n_k^(1 - alpha): 2, as published, reverses the proportions.
    """

    share_epochs: int | None = None
    reversed_alpha: float = 2.0

    def __post_init__(self) -> None:
        if self.share_epochs is not None and self.share_epochs < 1:
            raise ValueError(f"method.share_epochs is {self.share_epochs}, expected at least 1")
        if not math.isfinite(self.reversed_alpha):
            raise ValueError(f"method.reversed_alpha is {self.reversed_alpha}, expected a finite number")


class BBN(Objective):
    """Two streams, two branches, one classifier."""

    Options = BBNOptions
    own_stage = Stage
    drop_last = True
    without: ClassVar[Mapping[str, str]] = {
        "mixup_prob": "the two labels of a row already belong to two images, one per branch; pasting would add a third"
    }

    def streams(self) -> tuple[Stream, ...]:
        views = (self.context.view,)
        drawn = ClassWeighted(self.options.reversed_alpha)
        return Stream("original", Shuffled(), views), Stream(REVERSED, drawn, views)

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        return build_two_branch_network(options, self.classes, seed)

    def values(self, plan: MicroPlan) -> StepInputs:
        return {"share": np.array(self.share(plan.step.epoch))}

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        original, drawn = step.batches["original"], step.batches[REVERSED]
        plain, share = self.context.input_builder.plain, step.values["share"]
        logits: Tensor = model(plain(original.images[0]), plain(drawn.images[0]), share)
        rows = share * cross_entropy(logits, original.labels) + (1 - share) * cross_entropy(logits, drawn.labels)
        return StepOutput((rows * original.weights).sum() / step.global_batch_size, logits)

    def share(self, epoch: int) -> float:
        """λ of a zero-based epoch."""
        schedule, epochs = self.context.schedule, self.options.share_epochs
        total = schedule.epochs if epochs is None else epochs * schedule.epochs / schedule.options.for_epochs
        return 1 - (epoch / total) ** 2

    def derived_options(self) -> dict[str, Any]:
        return {"share_of_last_epoch": self.share(self.context.schedule.epochs - 1)}
