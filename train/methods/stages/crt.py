"""Classifier re-training, cRT (Kang et al., ICLR 2020): a new classifier on trained, frozen features.

A second stage: start it with `--model.init_from CHECKPOINT`. The classifier is re-initialised; with the mixing
`oversample`, as published, it sees all classes equally often. The official code freezes the feature parameters but
leaves batch normalisation in training mode, so its running statistics follow the over-sampled stream; the paper states
that representations are kept fixed.
"""

from train.methods.second_stage import SecondStage, SecondStageOptions


class CRT(SecondStage):
    """Only the classifiers are trained, from newly initialised weights."""

    Options = SecondStageOptions

    def inherits(self, parameter_name: str) -> bool:
        return not self.in_heads(parameter_name)

    def requires(self, parameter_name: str) -> bool:
        return False
