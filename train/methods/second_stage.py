"""Common parts of second stages: frozen features from a first stage, and a classifier trained on them."""

from dataclasses import dataclass

from torch import nn

from train.methods.parts import Mixing, Objective, Stage
from train.models.build import ModelOptions, replace_module
from train.models.heads import ScaledLinear

SCALES = ".scales"  # suffix of the name of a classifier's factors


@dataclass(frozen=True)
class SecondStageOptions:
    """What else is frozen.

    Args:
        freeze_statistics: keep batch normalisation's running statistics too.
    """

    freeze_statistics: bool = False


class SecondStage(Stage):
    """Only the classifiers are trained, starting from the weights of the first stage.

    Attributes:
        scaled: adds a learned factor per class.
    """

    Options = SecondStageOptions
    scaled = False

    def check(self, options: ModelOptions) -> None:
        if options.init_from is None:
            raise ValueError(
                "this method is a second stage: give the checkpoint of a first stage with --model.init_from"
            )

    def refuses(self, mixing: Mixing, objective: Objective) -> str | None:
        if mixing.mixes:
            return "the second stage trains a classifier on the features of whole images; mix in the first"
        if len(objective.views()) > objective.copies:
            return "a contrast with other views trains features, which this stage freezes"
        return None

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> None:
        super().prepare(model, heads)
        if self.scaled:
            for head in heads:
                replace_module(model, head, ScaledLinear)

    def trainable(self, parameter_name: str) -> bool:
        return self.in_heads(parameter_name)

    def requires(self, parameter_name: str) -> bool:
        return self.in_heads(parameter_name) and not (self.scaled and parameter_name.endswith(SCALES))

    def set_mode(self, model: nn.Module) -> None:
        if self.options.freeze_statistics:
            model.eval()
