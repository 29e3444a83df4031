"""Context-rich Minority Oversampling (Park et al., CVPR 2022): paste class-weighted images into the original stream.

A step that pastes overwrites one box of the original ("background") images with the same box of the foreground images
and uses the loss lam · L(z, background label) + (1 − lam) · L(z, foreground label), each term with its own normaliser.
The paper's listings paste in every step; the official code, which produced the numbers, in half of them.

With a shuffled foreground this is CutMix (Yun et al., ICCV 2019). The foreground is then a second, independently
shuffled pass over the training set, where that paper permutes the batch: every sample is still background once and
foreground at most once per epoch, and the pairs do not depend on the number of processes or micro-batches.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipeline.mix_rule import MixRule
from pipeline.sampling import ClassWeighted, ClassWeightedEffectiveNumber, ProgressivelyBalanced, Sampling, Shuffled
from train.methods.base import MicroStep
from train.methods.mixings.two_streams import TwoStreamOptions, TwoStreams


@dataclass(frozen=True)
class PasteOptions(TwoStreamOptions):
    """How the foreground is drawn and pasted.

    Args:
        weighted_alpha: foreground samples of class k are drawn with weight n_k^(-alpha), so classes with probability
            proportional to n_k^(1 - alpha): 1 is class-uniform (the paper's q(1, k)), 0.5 and 2 its q(1/2, k), q(2, k).
        mixup_prob: probability that a step pastes.
        beta: the box's share of the background, lam, is drawn from Beta(beta, beta).
        plain_first: plain epochs at the start: 4 in the code, which mixes when `3 < epoch` (from 0).
        plain_last: plain epochs at the end.
        foreground: weighted (by weighted_alpha), effective (by effective numbers, the paper's E(k)) or shuffled.
        background: shuffled, weighted (by weighted_alpha) or progressive (from instance-balanced to class-balanced over
            the run). The paper's CMO_minor has both weighted, its CMO_back a weighted background and a shuffled
            foreground; neither is in the official code. Plain steps use it too.
    """

    weighted_alpha: float = 1.0
    mixup_prob: float = 0.5
    beta: float = 1.0
    plain_first: int = 4
    plain_last: int = 3
    foreground: Literal["weighted", "effective", "shuffled"] = "weighted"
    background: Literal["shuffled", "weighted", "progressive"] = "shuffled"

    def mix_rule(self) -> MixRule:
        return MixRule("cutmix", self.mixup_prob, self.beta, self.plain_first, self.plain_last)

    def background_sampling(self, epochs: int) -> Sampling:
        if self.background == "progressive":
            return ProgressivelyBalanced(epochs)
        return ClassWeighted(self.weighted_alpha) if self.background == "weighted" else Shuffled()

    def foreground_sampling(self) -> Sampling:
        if self.foreground == "effective":
            return ClassWeightedEffectiveNumber()
        return ClassWeighted(self.weighted_alpha) if self.foreground == "weighted" else Shuffled()

    def __post_init__(self) -> None:
        if not self.mix_rule().probability:
            raise ValueError(
                "method.mixup_prob is 0, so no step would paste; choose --method.mixing none, or oversample for a "
                "weighted background"
            )


class Paste(TwoStreams):
    """Overwrites a box of each background image."""

    Options = PasteOptions

    def mixed(self, step: MicroStep, background: Tensor, foreground: Tensor, copies: int) -> Tensor:
        boxes = step.values["boxes"]
        return self.context.input_builder.paste(
            background, foreground, boxes.repeat(copies, 1) if copies > 1 else boxes
        )
