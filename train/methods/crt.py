"""Classifier re-training, cRT (Kang et al., ICLR 2020): a new classifier on trained, frozen features.

A second stage: start it with `--model.init_from CHECKPOINT`. The classifier starts afresh and sees every class alike.
The official code freezes the parameters of the features but leaves batch normalisation in training mode, so that its
running statistics follow the over-sampled stream; the paper speaks of keeping the representations fixed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from train.methods.base import MicroStep, StepOutput
from train.methods.ros import ROS, ROSOptions
from train.models.build import ModelOptions, classifier_name


@dataclass(frozen=True)
class CRTOptions(ROSOptions):
    """Loss and sampling of the second stage.

    Args:
        freeze_statistics: keep batch normalisation's running statistics too.
    """

    freeze_statistics: bool = False


class CRT(ROS):
    """Only the classifier is trained."""

    Options = CRTOptions
    without: ClassVar[Mapping[str, str]] = {
        "mixup_prob": "the second stage trains a classifier on the features of whole images; paste in the first"
    }

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        if options.init_from is None:
            raise ValueError("this method is a second stage: give the checkpoint of a first with --model.init_from")
        model = super().build_model(options, seed)
        self.classifier = classifier_name(model)
        return model

    def inherits(self, parameter_name: str) -> bool:
        return not self.trainable(parameter_name)

    def trainable(self, parameter_name: str) -> bool:
        return parameter_name.startswith(f"{self.classifier}.")

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        if self.options.freeze_statistics:
            model.eval()  # in every step: the trainer sets training mode after each evaluation
        return super().loss(model, step)
