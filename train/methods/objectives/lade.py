"""Label distribution disentangling, LADE (Hong et al., CVPR 2021): balanced softmax and a regulariser.

L = mean_i CE(z_i + log π, y_i) + α L_r; the regulariser is that of `train.losses.lade`. Both use the same logits.
The formulas are those of the released code: the paper weights each sample of the batch by its class, the code the whole
batch by one constant per class, and its prior has an effect only through λ s².
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.losses.functions import balanced_softmax
from train.losses.lade import lade_regulariser, log_with_epsilon
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs, key
from train.methods.parts import Mixing, Objective


@dataclass(frozen=True)
class LADEOptions:
    """Strength of the regulariser.

    Args:
        regulariser: its weight, α in the paper.
        penalty: weight of its squares, λ in the paper.
    """

    regulariser: float = 0.1
    penalty: float = 0.01

    def __post_init__(self) -> None:
        for name in ("regulariser", "penalty"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"method.{name} is {value}, expected a finite number of at least 0")


class LADE(Objective):
    """One linear classifier."""

    Options = LADEOptions
    drop_last = True  # as in the official code; a short batch would change the means s and t
    accumulates = False

    def __init__(self, options: LADEOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        counts = context.samples_per_class
        self.prior = counts / counts.sum()
        self.prior_on_device = torch.from_numpy(self.prior.astype(np.float32)).to(context.device)
        self.log_prior = log_with_epsilon(self.prior).to(context.device)

    def refuses(self) -> str | None:
        if self.mixing.mixes:
            return "LADE uses the mean logit of each class over a batch, which is undefined for images with two labels"
        return None

    def term_inputs(self, plan: MicroPlan, stream: str, share: np.ndarray | float) -> StepInputs:
        labels = plan.labels(stream)
        rows = np.bincount(plan.global_labels(stream), minlength=self.classes)[labels]
        targets = self.prior[labels] / rows
        return {**super().term_inputs(plan, stream, share), key(stream, "target_shares"): targets}

    def row_losses(self, output: Tensor, labels: Tensor) -> Tensor:
        return balanced_softmax(output, labels, self.log_prior)

    def term(self, step: MicroStep, stream: str, output: Tensor) -> Tensor:
        batch = step.batches[stream]
        regulariser = lade_regulariser(
            output,
            batch.labels,
            step.values[key(stream, "target_shares")],
            batch.weights,
            self.prior_on_device,
            self.options.penalty,
            step.global_batch_size,
        )
        return super().term(step, stream, output) + self.options.regulariser * regulariser
