"""Learnable weight scaling, LWS (Kang et al., ICLR 2020): one trained factor per class.

A second stage like cRT, but the classifier is kept and frozen too; only the factors f_k of the logits f_k · z_k learn.
"""

from torch import nn

from train.methods.stages.crt import CRT, CRTOptions
from train.models.build import replace_module
from train.models.heads import ScaledLinear


class LWS(CRT):
    """Only the scales of the classifiers are trained."""

    Options = CRTOptions

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> nn.Module:
        for head in heads:
            replace_module(model, head, ScaledLinear)
        return super().prepare(model, heads)

    def inherits(self, parameter_name: str) -> bool:
        return True

    def requires(self, parameter_name: str) -> bool:
        return self.in_heads(parameter_name) and not self.trainable(parameter_name)

    def trainable(self, parameter_name: str) -> bool:
        return self.in_heads(parameter_name) and parameter_name.endswith(".scales")
