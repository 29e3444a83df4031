"""Context-rich Minority Oversampling (Park et al., CVPR 2022): paste class-weighted images into the original stream.

A step that pastes overwrites one box of the original ("background") images with the same box of the weighted
("foreground") ones and takes lam · L(z, background label) + (1 − lam) · L(z, foreground label), each term with its own
normaliser. The paper's listings paste in every step; the official code, which produced the numbers, in half of them.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.mix_rule import MixRule
from pipeline.plan import Stream
from pipeline.sampling import ClassWeighted
from train.methods.base import MicroStep, StepOutput
from train.methods.vanilla import Vanilla, VanillaOptions


@dataclass(frozen=True)
class CMOOptions(VanillaOptions):
    """Loss, class weights, and how the foreground is drawn and pasted.

    Args:
        loss: ce, bs (balanced softmax) or ldam (brings a cosine classifier).
        rule: none, reweight (effective-number class weights) or drw (the same, deferred to `drw_start`).
        drw_start: first zero-based epoch with class weights under drw, for a run of schedule.for_epochs epochs.
        weighted_alpha: a foreground sample of class k is drawn with weight n_k^(-alpha), so the class with probability
            proportional to n_k^(1 - alpha): 1 is class-uniform (the paper's q(1, k)), 0.5 and 2 its q(1/2, k), q(2, k).
        mixup_prob: probability that a step pastes.
        beta: the box's share of the background, lam, is drawn from Beta(beta, beta).
        start_data_aug: epochs 0 … start_data_aug are plain.
        end_data_aug: the last end_data_aug epochs are plain.
    """

    weighted_alpha: float = 1.0
    mixup_prob: float = 0.5
    beta: float = 1.0
    start_data_aug: int = 3
    end_data_aug: int = 3


class CMO(Vanilla):
    """Two streams; the second is read only for the steps that paste."""

    Options = CMOOptions

    def streams(self) -> tuple[Stream, ...]:
        weighted = ClassWeighted(self.options.weighted_alpha)
        return (*super().streams(), Stream("weighted", weighted, (self.setting.view,), when="mixing"))

    def mix_rule(self) -> MixRule:
        o = self.options
        return MixRule(
            kind="cutmix",
            probability=o.mixup_prob,
            beta=o.beta,
            plain_first=o.start_data_aug + 1,
            plain_last=o.end_data_aug,
        )

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        if step.mix is None or not step.mix.paste:
            return super().loss(model, step)
        background, foreground = step.batches["original"], step.batches["weighted"]
        boxes = step.to_device(step.mix.boxes)
        logits = model(self.setting.assembler.paste(background.images[0], foreground.images[0], boxes))
        lam = step.mix.lam
        loss = self.term(step, "original", logits, lam) + self.term(step, "weighted", logits, 1 - lam)
        return StepOutput(loss, logits)

    def derived_options(self) -> dict[str, Any]:
        last = self.setting.schedule.epochs - self.options.end_data_aug - 1
        return {**super().derived_options(), "pasting_epochs": [self.options.start_data_aug + 1, last]}
