"""CutMix (Yun et al., ICCV 2019): CMO whose foreground is not weighted, in every epoch.

The foreground is a second, independently shuffled pass over the training set, where the paper permutes the batch. Every
sample is still background once and foreground at most once an epoch, and the pairs do not depend on the number of
processes or micro-batches. It costs a second decode on the steps that paste.
"""

from dataclasses import dataclass

from pipeline.mix_rule import MixRule
from pipeline.sampling import Sampling, Shuffled
from train.methods.cmo import CMO
from train.methods.vanilla import VanillaOptions


@dataclass(frozen=True)
class CutMixOptions(VanillaOptions):
    """How often a step pastes, and how much.

    Args:
        mixup_prob: probability that a step pastes; 0.5 on CIFAR and 1 on ImageNet in the paper.
        beta: the box's share of the background, lam, is drawn from Beta(beta, beta).
    """

    mixup_prob: float = 0.5
    beta: float = 1.0


class CutMix(CMO):
    """Two streams of the same distribution."""

    Options = CutMixOptions

    def background(self) -> Sampling:
        return Shuffled()

    def foreground(self) -> Sampling:
        return Shuffled()

    def mix_rule(self) -> MixRule:
        return MixRule("cutmix", self.options.mixup_prob, self.options.beta, plain_first=0, plain_last=0)
