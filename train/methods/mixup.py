"""Mixup (Zhang et al., ICLR 2018): whole images blended, lam · first + (1 − lam) · second, labels alike.

As for CutMix here, the second image comes from an independently shuffled pass over the training set and not from the
same batch; lam is one number a step, as in the official code.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pipeline.mix_rule import MixRule
from pipeline.sampling import Sampling, Shuffled
from train.methods.base import MicroStep
from train.methods.cmo import CMO
from train.methods.vanilla import VanillaOptions


@dataclass(frozen=True)
class BlendingOptions:
    """The strength of the mixture, under whatever loss.

    Args:
        beta: lam is drawn from Beta(beta, beta); the paper has 1 on CIFAR and 0.2 on ImageNet.
    """

    beta: float = 1.0


@dataclass(frozen=True)
class MixupOptions(BlendingOptions, VanillaOptions):
    """Loss, class weights and mixture; the fields are documented with their parts."""


class Mixup(CMO):
    """Every step of every epoch mixes."""

    Options: ClassVar[type] = MixupOptions

    def background(self) -> Sampling:
        return Shuffled()

    def foreground(self) -> Sampling:
        return Shuffled()

    def mix_rule(self) -> MixRule:
        return MixRule("mixup", 1.0, self.options.beta, plain_first=0, plain_last=0)

    def mixed(self, step: MicroStep) -> Tensor:
        first, second = step.batches["original"].images[0], step.batches["foreground"].images[0]
        return self.context.input_builder.mixup(first, second, step.values["lam"])
