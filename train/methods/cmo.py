"""Context-rich Minority Oversampling (Park et al., CVPR 2022): paste class-weighted images into the original stream.

A step that pastes overwrites one box of the original ("background") images with the same box of the weighted
("foreground") ones and takes lam · L(z, background label) + (1 − lam) · L(z, foreground label), each term with its own
normaliser. The paper's listings paste in every step; the official code, which produced the numbers, in half of them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from pipeline.mix_rule import MixPlan, MixRule
from pipeline.plan import Stream
from pipeline.sampling import ClassWeighted, ClassWeightedEffectiveNumber, ProgressivelyBalanced, Sampling, Shuffled
from pipeline.views.view import OneOf, View
from train.methods.base import MicroPlan, MicroStep, StepInputs, StepOutput
from train.methods.vanilla import Vanilla, VanillaOptions


@dataclass(frozen=True)
class PastingOptions:
    """How the foreground is drawn and pasted, under whatever loss.

    Args:
        weighted_alpha: a foreground sample of class k is drawn with weight n_k^(-alpha), so the class with probability
            proportional to n_k^(1 - alpha): 1 is class-uniform (the paper's q(1, k)), 0.5 and 2 its q(1/2, k), q(2, k).
        mixup_prob: probability that a step pastes; 0 leaves the weighted stream out.
        beta: the box's share of the background, lam, is drawn from Beta(beta, beta).
        plain_first: epochs at the start that are plain: 4 in the code, which mixes when `3 < epoch` (from 0).
        plain_last: epochs at the end that are plain.
        foreground: weighted (by weighted_alpha), effective (by effective numbers, the paper's E(k)) or shuffled.
        background: shuffled, weighted (by weighted_alpha) or progressive (from samples alike to classes alike over the
            run). The paper's CMO_minor is weighted under weighted, its CMO_back weighted under a shuffled foreground;
            neither is in the official code. Plain steps see it too.
    """

    weighted_alpha: float = 1.0
    mixup_prob: float = 0.5
    beta: float = 1.0
    plain_first: int = 4
    plain_last: int = 3
    foreground: Literal["weighted", "effective", "shuffled"] = "weighted"
    background: Literal["shuffled", "weighted", "progressive"] = "shuffled"


@dataclass(frozen=True)
class CMOOptions(PastingOptions, VanillaOptions):
    """Loss, class weights, and how the foreground is drawn and pasted; the fields are documented with their parts."""


class CMO(Vanilla):
    """Two streams; the second is read only for the steps that paste. Its parts are what other mixing methods change."""

    Options: ClassVar[type] = CMOOptions

    def streams(self) -> tuple[Stream, ...]:
        original = Stream("original", self.background(), (self.context.view,))
        if not self.mix_rule().probability:
            return (original,)
        return original, Stream("foreground", self.foreground(), (self.foreground_view(),), when="mixing")

    def background(self) -> Sampling:
        """Which samples are pasted on; all steps see them."""
        if self.options.background == "progressive":
            return ProgressivelyBalanced(self.context.schedule.epochs)
        return ClassWeighted(self.options.weighted_alpha) if self.options.background == "weighted" else Shuffled()

    def foreground(self) -> Sampling:
        """Which samples are pasted."""
        if self.options.foreground == "effective":
            return ClassWeightedEffectiveNumber()
        return ClassWeighted(self.options.weighted_alpha) if self.options.foreground == "weighted" else Shuffled()

    def foreground_view(self) -> View | OneOf:
        """How the pasted samples are augmented."""
        return self.context.view

    def mix_rule(self) -> MixRule:
        o = self.options
        return MixRule(
            kind="cutmix",
            probability=o.mixup_prob,
            beta=o.beta,
            plain_first=o.plain_first,
            plain_last=o.plain_last,
        )

    def values(self, plan: MicroPlan) -> StepInputs:
        if plan.mix is None or not plan.mix.paste:
            return super().values(plan)
        share = self.background_share(plan, plan.mix)
        terms = self.term_values(plan, "original", share) | self.term_values(plan, "foreground", 1 - share)
        return {**terms, "boxes": plan.mix.boxes, "lam": plan.mix.lam}

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        if "foreground" not in step.batches:
            return super().loss(model, step)
        output = model(self.mixed(step))
        loss = self.term(step, "original", output) + self.term(step, "foreground", output)
        return StepOutput(loss, self.prediction(output))

    def mixed(self, step: MicroStep) -> Tensor:
        """The network's input on a step that mixes."""
        background, foreground = step.batches["original"].images[0], step.batches["foreground"].images[0]
        return self.context.input_builder.paste(background, foreground, step.values["boxes"])

    def background_share(self, plan: MicroPlan, mix: MixPlan) -> np.ndarray:
        """Weight of the background's label, float64 (rows,); the foreground's has the rest."""
        return mix.lam

    def derived_options(self) -> dict[str, Any]:
        rule = self.mix_rule()
        first, end = rule.plain_first, self.context.schedule.epochs - rule.plain_last
        shown = f"{first} to {end - 1}" if first < end else "none: the run is shorter than its plain epochs"
        return {**super().derived_options(), **({"mixing_epochs": shown} if rule.probability else {})}
