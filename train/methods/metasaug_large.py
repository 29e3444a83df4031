"""MetaSAug for large data sets (Li et al., CVPR 2021): frozen features, a linear classifier, diagonal covariances.

A second stage: start it with `--model.init_from` from a plainly trained network, whose classifier it continues. The
meta step is that of metasaug.py; since features do not change, they are computed once a step and the virtual step is
one of the classifier alone. The first epoch has strength 0: it is cross entropy with class weights.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.plan import Stream
from pipeline.sampling import Redrawn, Shuffled
from train.methods.base import MicroStep
from train.methods.metasaug import MetaSAug, MetaSAugOptions, SemanticNetwork, VirtualNetwork
from train.models.build import ModelOptions


@dataclass(frozen=True)
class MetaSAugLargeOptions(MetaSAugOptions):
    """Those of metasaug with the defaults of the large data sets, and where the meta images come from.

    Args:
        loss: ce, or ldam for margins (not published for large data sets).
        strength: lambda; in epoch e of E the augmentation has the strength rho = lambda · e / E.
        meta_start: first zero-based epoch with meta steps.
        meta_lr: step size of the correction of the covariances.
        late_virtual_lr: the virtual step uses the learning rate of the epoch before.
        statistics: global (all processes share one estimate and one correction) or local (each has its own, as in the
            official code; a checkpoint then keeps that of the first process only).
        meta_per_class: how many images of each class of data.meta form the meta set; by default all.
        meta_view: how meta images are shown: train (augmented) or evaluation.
    """

    loss: Literal["ldam", "ce"] = "ce"
    meta_start: int = 0
    meta_per_class: int | None = None
    meta_view: Literal["train", "evaluation"] = "train"


class MetaSAugLarge(MetaSAug):
    """Only the classifier is trained; the encoder stays in evaluation mode."""

    Options = MetaSAugLargeOptions
    trains_encoder = False

    def streams(self) -> tuple[Stream, ...]:
        view = self.setting.view if self.options.meta_view == "train" else self.setting.evaluation_view
        meta = self.meta_stream(Redrawn(self.options.meta_per_class), view)
        return (Stream("original", Shuffled(), (self.setting.view,)), meta)

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        if options.init_from is None:
            raise ValueError(
                "metasaug_large trains a classifier on the features of a trained network: give its checkpoint with "
                "--model.init_from, or train the whole network with metasaug"
            )
        return super().build_model(options, seed)

    def trainable(self, parameter_name: str) -> bool:
        return not parameter_name.startswith("encoder.")

    def virtual_network(self, network: SemanticNetwork, step: MicroStep, features: Tensor) -> VirtualNetwork:
        """The classifier alone, on features that the virtual step does not move."""
        features = features.float()
        meta_features = network.features(self.setting.assembler.plain(step.batches["meta"].images[0]))
        return VirtualNetwork(
            dict(network.classifier.named_parameters()),
            "weight",
            lambda parameters: F.linear(features, parameters["weight"], parameters["bias"]),
            lambda parameters: F.linear(meta_features, parameters["weight"], parameters["bias"]),
        )
