"""Classifier re-training, cRT (Kang et al., ICLR 2020): a new classifier on trained, frozen features.

A second stage: start it with `--model.init_from CHECKPOINT`. The classifier starts afresh; under the mixing
`oversample`, as published, it sees every class alike. The official code freezes the parameters of the features but
leaves batch normalisation in training mode, so that its running statistics follow the over-sampled stream; the paper
speaks of keeping the representations fixed.
"""

from train.methods.second_stage import SecondStage, SecondStageOptions


class CRT(SecondStage):
    """Only the classifiers are trained, from new weights."""

    Options = SecondStageOptions

    def inherits(self, parameter_name: str) -> bool:
        return not self.in_heads(parameter_name)

    def requires(self, parameter_name: str) -> bool:
        return False
