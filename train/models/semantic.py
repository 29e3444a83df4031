"""A plain network that also returns its features, for MetaSAug, the influence-balanced loss and Causal Norm."""

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from train.models.build import ModelOptions, build_model, part_seed, seeded
from train.models.with_heads import WithHeads, detach_classifier


class SemanticNetwork(WithHeads):
    """A plain network, with the same state-dict names, that also returns its features."""

    def __init__(self, encoder: nn.Module, name: str, classifier: nn.Module, frozen: bool = False):
        super().__init__(encoder, frozen)
        self.classifier_name = name.rpartition(".")[2]
        # Not with add_module: some backbones call it head or classifier too, and it would ask these properties for it.
        self._modules[self.classifier_name] = classifier

    @property
    def classifier(self) -> nn.Linear:
        """The linear layer whose weights and inputs are augmented."""
        return cast(nn.Linear, self.head)

    @property
    def head(self) -> nn.Module:
        """The classifier, of any kind."""
        return cast(nn.Module, self._modules[self.classifier_name])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, height, width) → features (batch, features) and logits (batch, classes)."""
        features = self.features(images)
        return features, self.head(features)


def build_network(
    options: ModelOptions,
    classes: int,
    seed: int,
    frozen: bool = False,
    make_head: Callable[[int], nn.Module] | None = None,
) -> SemanticNetwork:
    """The network of `build_model` with its features.

    Args:
        make_head: maps the number of features to a classifier that replaces the linear one.
    """
    encoder = build_model(options, classes, "linear", seed)
    name, classifier = detach_classifier(encoder)
    if make_head is None:
        return SemanticNetwork(encoder, name, classifier, frozen)
    with seeded(part_seed(seed, "heads")):
        return SemanticNetwork(encoder, name, make_head(classifier.in_features), frozen)
