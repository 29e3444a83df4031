"""GLMC's second stage: only the re-balanced classifier, with weight decay and a bound on its row norms (MaxNorm).

Start it with `--model.init_from` from a GLMC checkpoint. The official code includes only the projection; the rest is
that of weight balancing (Alshammari et al., CVPR 2022), to which the authors refer; an early revision of GLMC's code
had its loss, with class weights n^(-1.2) instead of effective numbers. One choice is ours: the frozen encoder stays in
evaluation mode, so the classifier trains on the features that it is tested on.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.class_counts import effective_number_weights
from train.losses.criterion import EFFECTIVE_NUMBER_BETA
from train.losses.functions import is_target
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs, StepOutput
from train.methods.parts import Mixing, Objective
from train.methods.second_stage import SecondStage
from train.models.build import ModelOptions
from train.models.glmc import GLMCNetwork, build_network


@dataclass(frozen=True)
class MaxNormOptions:
    """The bound.

    Args:
        threshold: position of the bound between the smallest (0) and the largest (1) row norm of the first stage.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"method.threshold is {self.threshold}, expected a value from 0 to 1")


class _OneHead(GLMCNetwork):
    """The same network, of which only the re-balanced classifier is trained."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, 3, height, width) → (batch, classes)."""
        return self.evaluated_logits(images)


class GLMCMaxNorm(Objective):
    """One stream, one view, `fc_cb`; its rows are projected once per epoch."""

    Options = MaxNormOptions
    own_stage = SecondStage

    def __init__(self, options: MaxNormOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        self.class_weights = effective_number_weights(context.samples_per_class, EFFECTIVE_NUMBER_BETA)
        self.bound: Tensor | None = None

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        return build_network(_OneHead, options, self.classes, seed, frozen=True)

    def values(self, plan: MicroPlan) -> StepInputs:
        return {"class_weights": self.class_weights[plan.labels("original")]}

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        """Mean of w_y · BCE(softmax(z)_c, onehot(y)_c) over the global batch and the classes."""
        batch = step.batches["original"]
        logits = model(self.context.input_builder.plain(batch.images[0]))
        weights = step.values["class_weights"] * batch.weights
        loss = (weights * softmax_bce(logits, batch.labels)).sum() / step.global_batch_size
        return StepOutput(loss, logits)

    def before_optimizer(self, model: nn.Module) -> None:
        if self.bound is None:  # the first step: the weights are still those of the first stage
            self.bound = row_norm_bound(_classifier(model).weight.detach(), self.options.threshold)

    def project(self, model: nn.Module) -> None:
        assert self.bound is not None, "an epoch has at least one step"
        weight = _classifier(model).weight
        with torch.no_grad():
            weight.copy_(bounded_rows(weight, self.bound))

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.bound is None else {"bound": self.bound}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.bound = state["bound"].to(self.context.device) if "bound" in state else None


def _classifier(model: nn.Module) -> nn.Linear:
    assert isinstance(model, GLMCNetwork)
    return model.fc_cb


def softmax_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over classes of the binary cross entropy of softmax probabilities, float32 (batch,)."""
    # Autocast refuses this loss, because half precision is too inaccurate.
    with torch.autocast(logits.device.type, enabled=False):
        probabilities = logits.float().softmax(dim=1)
        targets = is_target(labels, logits.shape[1]).float()
        return F.binary_cross_entropy(probabilities, targets, reduction="none").mean(dim=1)


def row_norm_bound(weight: Tensor, threshold: float) -> Tensor:
    """min + threshold · (max − min) of the row norms of `weight` (classes, features); a scalar."""
    norms = weight.norm(dim=1)
    return norms.min() + threshold * (norms.max() - norms.min())


def bounded_rows(weight: Tensor, bound: Tensor) -> Tensor:
    """`weight` with rows above the norm bound scaled down to it, others unchanged."""
    return weight * (bound / weight.norm(dim=1, keepdim=True)).clamp(max=1)
