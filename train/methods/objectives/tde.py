"""Causal Norm, or total direct effect, TDE (Tang et al., NeurIPS 2020): removes the direction that momentum adds.

Training is cross entropy on normalised heads. Meanwhile the mean feature of each step is added to a running one, embed
← µ · embed + mean f; every evaluation removes a part of the features along it (`train.models.causal`). The running
feature is a buffer of the network, so each checkpoint has its own; the official code pairs the best epoch's weights
with the last epoch's.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.losses.functions import at_least_float32
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs
from train.methods.parts import Mixing, Objective
from train.models.build import ModelOptions
from train.models.causal import CausalClassifier
from train.models.semantic import SemanticNetwork, build_network


@dataclass(frozen=True)
class TDEOptions:
    """Heads and their evaluation.

    Args:
        heads: number of parts into which features and class vectors are split.
        scale: factor on the logits.
        tde_alpha: how much an evaluation removes: 3 at 224 pixels, 1.5 on CIFAR-100, 1 on CIFAR-10; 0 is plain
            de-confounded training. Choose it so that alpha times the mean cosine is about 1 (the authors' advice).
        decay_by_rate: µ is 1 − 0.1 · min(50 · lr, 1), 0.9 until the rate falls below 0.02 and closer to 1 afterwards;
            false keeps it at 0.9, as published on CIFAR.
    """

    heads: int = 2
    scale: float = 16.0
    tde_alpha: float = 3.0
    decay_by_rate: bool = True

    def __post_init__(self) -> None:
        if self.heads < 1 or not 0 < self.scale < math.inf or not 0 <= self.tde_alpha < math.inf:
            raise ValueError(
                f"method: heads is {self.heads}, scale {self.scale}, tde_alpha {self.tde_alpha}; expected at least 1, "
                "above 0, and at least 0"
            )


class TDE(Objective):
    """One normalised classifier and its running feature."""

    Options = TDEOptions
    drop_last = True

    def __init__(self, options: TDEOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        self._means: Tensor | None = None  # (features,), of this rank's rows of the step so far
        self._decay: Tensor | None = None

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        classes, o = self.classes, self.options
        return build_network(
            options, classes, seed, make_head=lambda features: CausalClassifier(features, classes, o.heads, o.scale)
        )

    def step_inputs(self, plan: MicroPlan) -> StepInputs:
        return {"decay": np.array(self.decay(plan.step.epoch))}

    def forward(self, model: nn.Module, images: Tensor, step: MicroStep) -> tuple[Tensor, Tensor]:
        features, logits = model(images)
        weights = step.batches["original"].weights
        mean = (weights[:, None] * at_least_float32(features.detach())).sum(dim=0) / step.global_batch_size
        self._means = mean if self._means is None else self._means + mean
        self._decay = step.values["decay"]
        return features, logits

    def prediction(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[1]

    @torch.no_grad()
    def before_optimizer(self, model: nn.Module) -> None:
        """Update the running feature with the mean of the global batch, once per step and identically on all ranks."""
        assert self._means is not None and self._decay is not None
        if dist.is_initialized():
            dist.all_reduce(self._means)
        embed = model.get_submodule(self.head_names(model)[0]).get_buffer("embed")
        embed.copy_(self._decay * embed + self._means)
        self._means = None

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        assert isinstance(model, SemanticNetwork) and isinstance(model.head, CausalClassifier)
        features, _ = model(images)
        return model.head.without_confounder(features, self.options.tde_alpha)[None]

    def decay(self, epoch: int) -> float:
        """µ of a zero-based epoch."""
        if not self.options.decay_by_rate:
            return 0.9
        return 1 - 0.1 * min(50 * self.context.schedule.lr(epoch), 1.0)

    def derived_options(self) -> dict[str, Any]:
        return {"decay_of_last_epoch": self.decay(self.context.schedule.epochs - 1)}
