"""A backbone whose features feed our own heads, with the state-dict names of one flat network."""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from train.models.build import ModelOptions, build_model, classifier_name, replace_module, seeded

if TYPE_CHECKING:
    from timm.models.resnet import ResNet


def detach_classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """Remove the last linear layer of a backbone, so it returns features; returns the layer's name and the layer.

    Raises:
        ValueError: the backbone does not end in a single linear layer.
    """
    name = classifier_name(model)
    return name, replace_module(model, name, lambda features, classes: nn.Identity())


def bare_backbone(options: ModelOptions, seed: int) -> tuple[nn.Module, int]:
    """A backbone without classifier, and its number of features.

    Unless pretrained, the 224-pixel ResNets of NCL and BBN use torch's default initialisation of convolutions instead
    of torchvision's Kaiming-normal one.
    """
    backbone = build_model(options, 1, "linear", seed)
    _, classifier = detach_classifier(backbone)
    if is_timm_resnet(backbone) and not options.pretrained:
        reset_convolutions(backbone, seed)
    return backbone, classifier.in_features


def is_timm_resnet(network: nn.Module) -> "TypeGuard[ResNet]":
    """Whether it is a timm ResNet; does not import timm if it is not."""
    return "timm.models.resnet" in sys.modules and isinstance(network, sys.modules["timm.models.resnet"].ResNet)


def reset_convolutions(module: nn.Module, seed: int) -> None:
    """Re-initialise all convolutions with torch's default."""
    with seeded(seed):
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.reset_parameters()


class WithHeads(nn.Module):
    """An encoder without its classifier; subclasses add heads and define what a forward pass returns.

    In a state dict the encoder's names have no prefix. So plain networks, these networks and the published checkpoints
    share names, and weights can be moved between them (`model.init_from`).

    Args:
        encoder: images to features (batch, features).
        frozen: the encoder computes no gradients and stays in evaluation mode, regardless of the network's mode.
    """

    def __init__(self, encoder: nn.Module, frozen: bool = False):
        super().__init__()
        self.encoder = encoder
        self.frozen = frozen
        self.train()
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def train(self, mode: bool = True) -> "WithHeads":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) → (batch, features)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder(images)


_PREFIX = "encoder."


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix + _PREFIX)]:
        state[prefix + name[len(prefix + _PREFIX) :]] = state.pop(name)


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    assert isinstance(module, WithHeads)
    own = {name for name, _ in module.encoder.named_parameters()} | {name for name, _ in module.encoder.named_buffers()}
    for name in [name for name in state if name.removeprefix(prefix) in own]:
        state[prefix + _PREFIX + name.removeprefix(prefix)] = state.pop(name)
