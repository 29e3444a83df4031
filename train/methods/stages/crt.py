"""Classifier re-training, cRT (Kang et al., ICLR 2020): a new classifier on trained, frozen features.

A second stage: start it with `--model.init_from CHECKPOINT`. The classifier starts afresh; under the mixing
`oversample`, as published, it sees every class alike. The official code freezes the parameters of the features but
leaves batch normalisation in training mode, so that its running statistics follow the over-sampled stream; the paper
speaks of keeping the representations fixed.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from train.methods.base import MethodContext
from train.methods.parts import Mixing, Objective, Stage
from train.models.build import ModelOptions


@dataclass(frozen=True)
class CRTOptions:
    """What else is frozen.

    Args:
        freeze_statistics: keep batch normalisation's running statistics too.
    """

    freeze_statistics: bool = False


class CRT(Stage):
    """Only the classifiers are trained, from new weights."""

    Options: ClassVar[type] = CRTOptions

    def __init__(self, options: Any, context: MethodContext):
        super().__init__(options, context)
        self.heads: tuple[str, ...] = ()

    def check(self, options: ModelOptions) -> None:
        if options.init_from is None:
            raise ValueError("this method is a second stage: give the checkpoint of a first with --model.init_from")

    def refuses(self, mixing: Mixing, objective: Objective) -> str | None:
        if mixing.mixes:
            return "the second stage trains a classifier on the features of whole images; mix in the first"
        if len(objective.views()) > objective.copies:
            return "a contrast with other views trains features, which this stage freezes"
        return None

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> nn.Module:
        self.heads = heads
        return model

    def in_heads(self, parameter_name: str) -> bool:
        """Whether a parameter belongs to a classifier."""
        return parameter_name.startswith(tuple(f"{head}." for head in self.heads))

    def trainable(self, parameter_name: str) -> bool:
        return self.in_heads(parameter_name)

    def inherits(self, parameter_name: str) -> bool:
        return not self.in_heads(parameter_name)

    def set_mode(self, model: nn.Module) -> None:
        if self.options.freeze_statistics:
            model.eval()  # in every step: the trainer sets training mode after each evaluation
