"""One classifier under any loss and class weights: CE, CE-DRW, focal, LDAM-DRW, balanced softmax, logit adjustment."""

from dataclasses import dataclass
from typing import Any, ClassVar

from train.losses.criterion import Criterion, Loss, Rule
from train.methods.base import MethodContext
from train.methods.parts import Mixing, Objective


@dataclass(frozen=True)
class ClassifierOptions:
    """Loss and class weights.

    Args:
        loss: ce, bs (balanced softmax), la (logit-adjusted, by tau), focal (exponent 2) or ldam (with a cosine
            classifier).
        rule: none, reweight (effective-number class weights), inverse (class weights of 1 / n) or drw (deferred
            reweight, starting at `drw_from_epoch`).
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

    def __init__(self, options: Any, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        start = context.schedule.rescaled(options.drw_from_epoch)
        self.criterion = Criterion(
            options.loss, options.rule, context.samples_per_class, start, context.device, options.tau
        )

    def derived_options(self) -> dict[str, Any]:
        return {"drw_from_epoch": self.criterion.drw_epoch} if self.options.rule == "drw" else {}
