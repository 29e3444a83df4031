"""Mixup (Zhang et al., ICLR 2018): whole images blended, lam · first + (1 − lam) · second, and likewise labels.

As for CutMix here, the second image comes from an independently shuffled pass over the training set instead of the same
batch; lam is one number per step, as in the official code.
"""

from dataclasses import dataclass

from pipeline.mix_rule import MixRule
from train.methods.mixings.two_streams import TwoStreamOptions, TwoStreams


@dataclass(frozen=True)
class MixupOptions(TwoStreamOptions):
    """The strength of the mixture.

    Args:
        beta: lam is drawn from Beta(beta, beta); the paper uses 1 on CIFAR and 0.2 on ImageNet.
    """

    beta: float = 1.0

    def mix_rule(self) -> MixRule:
        return MixRule("mixup", 1.0, self.beta, plain_first=0, plain_last=0)

    def __post_init__(self) -> None:
        self.mix_rule()


class Mixup(TwoStreams):
    """Two shuffled streams, blended."""

    Options = MixupOptions
