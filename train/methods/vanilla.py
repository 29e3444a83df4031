"""Plain training on the original stream under any loss and class-weight rule: CE, CE-DRW, LDAM-DRW, BS."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from pipeline.plan import Stream
from pipeline.sampling import Shuffled
from train.losses.criterion import Criterion, Loss, Rule
from train.methods.base import Method, MethodContext, MicroPlan, MicroStep, StepInputs, StepOutput
from train.models.build import ModelOptions, build_model


@dataclass(frozen=True)
class VanillaOptions:
    """Loss and class weights.

    Args:
        loss: ce, bs (balanced softmax) or ldam (brings a cosine classifier).
        rule: none, reweight (effective-number class weights) or drw (the same, deferred to `drw_from_epoch`).
        drw_from_epoch: first zero-based epoch with class weights under drw, for a run of schedule.for_epochs epochs.
    """

    loss: Loss = "ce"
    rule: Rule = "none"
    drw_from_epoch: int = 160


class Vanilla(Method):
    """One stream, one view, one forward pass."""

    Options: ClassVar[type] = VanillaOptions

    def __init__(self, options: Any, context: MethodContext):
        super().__init__(options, context)
        self.criterion = self.make_criterion()

    def make_criterion(self) -> Criterion:
        """The loss and its class weights."""
        o, context = self.options, self.context
        drw_epoch = context.schedule.rescaled(o.drw_from_epoch)
        return Criterion(o.loss, o.rule, context.samples_per_class, drw_epoch, context.device)

    def streams(self) -> tuple[Stream, ...]:
        return (Stream("original", Shuffled(), (self.context.view,)),)

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        return build_model(options, len(self.context.samples_per_class), self.criterion.head, seed)

    def values(self, plan: MicroPlan) -> StepInputs:
        return self.term_values(plan, "original")

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        output = model(self.plain(step))
        return StepOutput(self.term(step, "original", output), self.prediction(output))

    def plain(self, step: MicroStep) -> Tensor:
        """The network's input on a step that does not mix."""
        return self.context.input_builder.plain(step.batches["original"].images[0])

    def prediction(self, output: Tensor) -> Tensor:
        """Logits that rank the classes, (rows, classes), from what the network returns."""
        return output

    def eval_logits(self, model: nn.Module, images: Tensor) -> Tensor:
        return self.prediction(model(images))

    def term_values(self, plan: MicroPlan, stream: str, share: np.ndarray | float = 1.0) -> StepInputs:
        """What `term` has to know of a stream.

        share: weight of the term for each row, float64 (rows,).
        """
        coefficients = self.criterion.coefficients(plan.step.epoch, plan.global_labels(stream))
        return {f"{stream} coefficients": share * coefficients[plan.positions]}

    def term(self, step: MicroStep, stream: str, logits: Tensor) -> Tensor:
        """This micro-batch's part of sum_i share_i c_i L(z_i, y_i), y the labels of a stream.

        The coefficients c belong to the global batch.
        """
        batch = step.batches[stream]
        weights = step.values[f"{stream} coefficients"] * batch.weights
        return (weights * self.criterion.per_sample(logits, batch.labels)).sum()

    def derived_options(self) -> dict[str, Any]:
        if self.criterion.rule != "drw":
            return {}
        return {"drw_from_epoch": self.criterion.drw_epoch}
