"""Learnable weight scaling, LWS (Kang et al., ICLR 2020): one trained factor a class.

A second stage like cRT, but the classifier is kept and frozen too; only the factors f_k of the logits f_k · z_k learn.
"""

from torch import nn

from train.methods.crt import CRT, CRTOptions
from train.models.build import ModelOptions, replace_classifier
from train.models.heads import ScaledLinear


class LWS(CRT):
    """Only the scales of the classifier are trained."""

    Options = CRTOptions

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        model = super().build_model(options, seed)
        replace_classifier(model, ScaledLinear)
        return model

    def inherits(self, parameter_name: str) -> bool:
        return True

    def requires(self, parameter_name: str) -> bool:
        return parameter_name in (f"{self.classifier}.weight", f"{self.classifier}.bias")

    def trainable(self, parameter_name: str) -> bool:
        return parameter_name == f"{self.classifier}.scales"
