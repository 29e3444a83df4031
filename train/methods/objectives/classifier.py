"""One classifier under any loss and class weights: CE, CE-DRW, focal, LDAM-DRW, balanced softmax, logit adjustment."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from train.losses.criterion import Criterion, Loss, Rule
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs
from train.methods.parts import Objective
from train.methods.weighted_terms import WeightedTerms
from train.models.build import ModelOptions, build_model, classifier_name


@dataclass(frozen=True)
class ClassifierOptions:
    """Loss and class weights.

    Args:
        loss: ce, bs (balanced softmax), la (logit-adjusted, by tau), focal (exponent 2) or ldam (brings a cosine
            classifier).
        rule: none, reweight (effective-number class weights), inverse (class weights of 1 / n) or drw (those of
            reweight, from `drw_from_epoch` on).
        drw_from_epoch: first zero-based epoch with class weights under drw, for a run of schedule.for_epochs epochs.
        tau: exponent of the class prior under la; 1 is the balanced softmax.
    """

    loss: Loss = "ce"
    rule: Rule = "none"
    drw_from_epoch: int = 160
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.loss in ("bs", "la") and self.rule != "none":
            raise ValueError(
                f"the balanced softmax corrects the prior itself; method.rule is {self.rule}, expected none"
            )


class Classifier(Objective):
    """One network, one classifier, one forward pass."""

    Options: ClassVar[type] = ClassifierOptions

    def __init__(self, options: Any, context: MethodContext):
        super().__init__(options, context)
        start = context.schedule.rescaled(options.drw_from_epoch)
        self.criterion = Criterion(
            options.loss, options.rule, context.samples_per_class, start, context.device, options.tau
        )
        self.terms = WeightedTerms(self.criterion)

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        return build_model(options, len(self.context.samples_per_class), self.criterion.head, seed)

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        return (classifier_name(model),)

    def term_inputs(self, plan: MicroPlan, stream: str, share: np.ndarray | float) -> StepInputs:
        return self.terms.inputs(plan, stream, share)

    def term(self, step: MicroStep, stream: str, output: Tensor) -> Tensor:
        return self.terms.share(step, stream, self.criterion.per_sample(output, step.batches[stream].labels))

    def derived_options(self) -> dict[str, Any]:
        return {"drw_from_epoch": self.criterion.drw_epoch} if self.options.rule == "drw" else {}
