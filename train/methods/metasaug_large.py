"""MetaSAug for large data sets (Li et al., CVPR 2021): frozen features, a linear classifier, diagonal covariances.

A second stage: start it with `--model.init_from` from a plainly trained network, whose classifier it continues to
train. The meta step is that of metasaug.py; since features do not change, they are computed once per step and the
virtual step only moves the classifier. The first epoch has strength 0: it is cross entropy with class weights. With
mixed_precision only evaluations use half precision.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.plan import Stream
from pipeline.sampling import Redrawn, Shuffled
from train.methods.base import MicroStep, StepOutput
from train.methods.metasaug import MetaSAug, MetaSAugOptions, VirtualNetwork
from train.methods.second_stage import SecondStage
from train.models.semantic import SemanticNetwork


@dataclass(frozen=True)
class MetaSAugLargeOptions(MetaSAugOptions):
    """The options of metasaug with the defaults for large data sets, and the source of the meta images.

    Args:
        loss: ce, or ldam for margins (not published for large data sets).
        strength: lambda; in epoch e of E the augmentation has strength rho = lambda · e / E.
        meta_from_epoch: first zero-based epoch with meta steps.
        meta_lr: step size of the correction of the covariances.
        late_virtual_lr: the virtual step uses the learning rate of the epoch before.
        statistics: global (all processes share one estimate, one correction and one sum of class weights) or local
            (each process has its own, as in the official code; runs of several processes then cannot be resumed).
        meta_per_class: number of images per class of data.meta in the meta set; by default all.
        meta_view: view of meta images: train (augmented) or evaluation.
    """

    loss: Literal["ldam", "ce"] = "ce"
    meta_from_epoch: int = 0
    meta_per_class: int | None = None
    meta_view: Literal["train", "evaluation"] = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.meta_per_class is not None and self.meta_per_class < 1:
            raise ValueError(f"method.meta_per_class is {self.meta_per_class}, expected at least 1, or none for all")


class MetaSAugLarge(MetaSAug):
    """Only the classifier is trained; the encoder stays in evaluation mode."""

    Options = MetaSAugLargeOptions
    own_stage = SecondStage
    trains_encoder = False

    def streams(self) -> tuple[Stream, ...]:
        view = self.context.view if self.options.meta_view == "train" else self.context.evaluation_view
        meta = self.meta_stream(Redrawn(self.options.meta_per_class), view)
        return (Stream("original", Shuffled(), (self.context.view,)), meta)

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        """In float32 regardless of the run's precision, so the features of both batches are consistent."""
        with torch.autocast(self.context.device.type, enabled=False):
            return super().loss(model, step)

    def virtual_network(self, network: SemanticNetwork, step: MicroStep, features: Tensor) -> VirtualNetwork:
        """Only the classifier, on features that the virtual step does not change."""
        meta_features = network.features(self.context.input_builder.plain(step.batches["meta"].images[0]))
        return VirtualNetwork(
            dict(network.classifier.named_parameters()),
            "weight",
            lambda parameters: F.linear(features, parameters["weight"], parameters["bias"]),
            lambda parameters: F.linear(meta_features, parameters["weight"], parameters["bias"]),
        )
