"""Learnable weight scaling, LWS (Kang et al., ICLR 2020): one trained factor per class.

A second stage like cRT, but the classifier is kept and frozen too; only the factors f_k in the logits f_k · z_k learn.
"""

from train.methods.second_stage import SCALES, SecondStage, SecondStageOptions


class LWS(SecondStage):
    """Only the scales of the classifiers are trained."""

    Options = SecondStageOptions
    scaled = True

    def trainable(self, parameter_name: str) -> bool:
        return self.in_heads(parameter_name) and parameter_name.endswith(SCALES)
