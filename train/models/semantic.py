"""MetaSAug's network: a plain one that also says its features (Li et al., CVPR 2021)."""

from torch import Tensor, nn

from train.models.build import ModelOptions, build_model
from train.models.with_heads import WithHeads, detach_classifier


class SemanticNetwork(WithHeads):
    """A plain network, its state-dict names included, that also says its features."""

    def __init__(self, encoder: nn.Module, name: str, classifier: nn.Linear, frozen: bool = False):
        super().__init__(encoder, frozen)
        self.classifier_name = name.rpartition(".")[2]
        self.add_module(self.classifier_name, classifier)

    @property
    def classifier(self) -> nn.Linear:
        """The linear layer whose weights and inputs are augmented."""
        layer = self.get_submodule(self.classifier_name)
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, height, width) → features (batch, features) and logits (batch, classes)."""
        features = self.features(images)
        return features, self.classifier(features)


def build_network(options: ModelOptions, classes: int, seed: int, frozen: bool = False) -> SemanticNetwork:
    """The network of ``build_model`` with its features."""
    encoder = build_model(options, classes, "linear", seed)
    return SemanticNetwork(encoder, *detach_classifier(encoder), frozen)
