"""RIDE, routing diverse experts (Wang et al., ICLR 2021), without its routing stage.

Every expert has the LDAM-DRW loss on its own logits z_i, and is pushed away from the mean of all experts:

    sum_i  CE(z_i − s m_y onehot(y), y, w)  +  delta T̄² KL(p̄ ‖ p_i),    p_i = softmax(z_i / T), p̄ = softmax(z̄ / T)

with delta < 0 and p̄ detached. Starting at `reweight_from_epoch`, w are the effective-number class weights and T, which
is 1 before, is smaller for small classes. With delta = 0 the official code trains the mean of the logits; here experts
remain separate.

If two images are mixed, the loss is lam · L(·, background) + (1 − lam) · L(·, foreground). The diversity term has no
label, so it counts once. CMO's paper only says "RIDE (3 experts) + CMO"; whether those numbers used distillation from a
larger ensemble, as RIDE's own for ResNet-50 did, is unknown. Distillation and routing, which saves computation but does
not reduce errors, are not implemented. How that paper combined "RIDE + Remix" is not published either.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.losses.criterion import Criterion
from train.losses.functions import at_least_float32
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs, key
from train.methods.parts import Mixing, Objective
from train.models.build import ModelOptions
from train.models.ride import SCALE, build_ride


def class_temperatures(samples_per_class: np.ndarray, strength: float) -> np.ndarray:
    """T_k = u_k / max_j u_j with u_k = f C n_k / N + 1 − f and strength f; float64 (classes,), 1 for the largest."""
    counts = np.asarray(samples_per_class, dtype=np.float64)
    unscaled = strength * len(counts) * counts / counts.sum() + 1 - strength
    return unscaled / unscaled.max()


def diversity(logits: Tensor, temperatures: Tensor) -> Tensor:
    """sum_i T̄² KL(p̄ ‖ p_i) for each sample, (batch,). logits (experts, batch, classes), temperatures (classes,)."""
    logits = at_least_float32(logits)
    experts = F.log_softmax(logits / temperatures, dim=2)
    mean = F.log_softmax(logits.mean(dim=0) / temperatures, dim=1).detach()
    divergence = (mean.exp() * (mean - experts)).sum(dim=2)
    return temperatures.mean() ** 2 * divergence.sum(dim=0)


@dataclass(frozen=True)
class RIDEOptions:
    """The experts and their loss.

    Args:
        experts: number of experts.
        reduced: experts with 3/4 of the channels, as published; otherwise all channels.
        diversity: the factor delta; negative rewards disagreement with the mean.
        temperature: the strength f, 0 to 1, with which small classes get a smaller temperature.
        reweight_from_epoch: first zero-based epoch with class weights and class temperatures, for a run of
            schedule.for_epochs epochs.
    """

    experts: int = 3
    reduced: bool = True
    diversity: float = -0.2
    temperature: float = 0.05
    reweight_from_epoch: int = 160

    def __post_init__(self) -> None:
        if self.experts < 2:
            raise ValueError(
                f"method.experts is {self.experts}, expected at least 2: a single expert has no other to differ from"
            )
        if not 0 <= self.temperature < 1:
            raise ValueError(f"method.temperature is {self.temperature}, expected 0 <= temperature < 1")


class RIDE(Objective):
    """Several experts on one trunk; the prediction is the mean of their logits."""

    Options: ClassVar[type] = RIDEOptions

    def __init__(self, options: RIDEOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        counts = context.samples_per_class
        self.late_temperatures = class_temperatures(counts, options.temperature)
        switch = context.schedule.rescaled(options.reweight_from_epoch)
        self.criterion = Criterion("ldam", "drw", counts, switch, context.device)

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        o = self.options
        return build_ride(options, self.classes, o.experts, o.reduced, seed)

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        return tuple(f"backbone.linears.{expert}" for expert in range(self.options.experts))

    def term_inputs(self, plan: MicroPlan, stream: str, share: np.ndarray | float) -> StepInputs:
        late = plan.step.epoch >= self.criterion.drw_epoch
        return {
            **super().term_inputs(plan, stream, share),
            key(stream, "shares"): np.broadcast_to(share, len(plan.positions)) / plan.global_size(stream),
            "temperatures": self.late_temperatures if late else np.ones_like(self.late_temperatures),
        }

    def term(self, step: MicroStep, stream: str, output: Tensor) -> Tensor:
        """output: scaled logits (experts, rows, classes)."""
        batch = step.batches[stream]
        classification = output.new_zeros((), dtype=torch.float32)
        for expert in output:
            rows = self.criterion.per_sample(expert / SCALE, batch.labels)
            classification = classification + self.weighted(step, stream, rows)
        weights = step.values[key(stream, "shares")] * batch.weights
        divergence = diversity(output, step.values["temperatures"])
        return classification + self.options.diversity * (weights * divergence).sum()

    def prediction(self, output: Tensor) -> Tensor:
        return output.mean(dim=0)

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        return model(images)

    def derived_options(self) -> dict[str, Any]:
        return {"reweight_from_epoch": self.criterion.drw_epoch}
