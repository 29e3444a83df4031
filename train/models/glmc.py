"""GLMC's network (Du et al., CVPR 2023): an encoder with two classifiers and the layers that compare two mixes."""

from typing import NamedTuple

from torch import Tensor, nn

from train.models.build import ModelOptions, build_model, part_seed, seeded
from train.models.resnet_cifar import ResNet32, kaiming_init
from train.models.with_heads import WithHeads, detach_classifier


class Heads(NamedTuple):
    """The network's outputs for one mixed batch.

    plain, rebalanced: logits (batch, classes) of `fc` and `fc_cb`. projection: z (batch, dimensions). prediction: p,
    of the same shape, which should match the other mix's z.
    """

    plain: Tensor
    rebalanced: Tensor
    projection: Tensor
    prediction: Tensor


class GLMCNetwork(WithHeads):
    """An encoder with two classifiers, a projection and a prediction layer, named as in the official code."""

    classifier_name = "fc_cb"  # the evaluated one

    def __init__(self, encoder: nn.Module, classifier: nn.Linear, dimensions: int, frozen: bool = False):
        super().__init__(encoder, frozen)
        self.fc = classifier
        self.fc_cb = nn.Linear(classifier.in_features, classifier.out_features)
        self.projection_head = nn.Sequential(nn.Linear(classifier.in_features, dimensions))
        self.contrast_head = nn.Sequential(nn.Linear(dimensions, dimensions))

    def forward(self, global_mix: Tensor, local_mix: Tensor) -> tuple[Heads, Heads]:
        """Both passes in one call, because the distributed wrapper expects one call per backward pass."""
        return self.heads(global_mix), self.heads(local_mix)

    def heads(self, images: Tensor) -> Heads:
        """One pass."""
        features = self.features(images)
        projection = self.projection_head(features)
        return Heads(self.fc(features), self.fc_cb(features), projection, self.contrast_head(projection))

    def evaluated_logits(self, images: Tensor) -> Tensor:
        """Logits of the re-balanced classifier only."""
        return self.fc_cb(self.features(images))


def build_network(
    network: type[GLMCNetwork], options: ModelOptions, classes: int, seed: int, frozen: bool = False
) -> GLMCNetwork:
    """A GLMC network on any backbone; projections have 128 dimensions on ResNet-32 and 256 on others, as published."""
    encoder = build_model(options, classes, "linear", seed)
    _, classifier = detach_classifier(encoder)
    is_resnet32 = isinstance(encoder, ResNet32)
    with seeded(part_seed(seed, "heads")):
        model = network(encoder, classifier, 128 if is_resnet32 else 256, frozen)
        if is_resnet32:
            for head in (model.fc_cb, model.projection_head, model.contrast_head):
                head.apply(kaiming_init)
    return model
