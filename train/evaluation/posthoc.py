"""Corrections of a trained classifier for the long tail without training: two edits of its last layer."""

import numpy as np
import torch
from torch import nn

from train.losses.functions import log_prior
from train.models.build import classifier_name


@torch.no_grad()
def tau_normalise(model: nn.Module, tau: float) -> None:
    """Divide each class vector by its norm to the power of tau and drop the bias (Kang et al., ICLR 2020).

    tau = 0 only drops the bias, as the official evaluation does; 1 makes all norms equal.
    """
    layer = _linear_classifier(model, "tau-normalisation")
    layer.weight.div_(layer.weight.norm(dim=1, keepdim=True) ** tau)
    layer.bias.zero_()


@torch.no_grad()
def adjust_logits(model: nn.Module, samples_per_class: np.ndarray, tau: float) -> None:
    """Rank by z_k − tau · log pi_k, with pi the training prior (Menon et al., ICLR 2021, eq. 9): a bias shift."""
    layer = _linear_classifier(model, "logit adjustment")
    layer.bias.sub_(tau * log_prior(samples_per_class).to(layer.bias.device))


def _linear_classifier(model: nn.Module, purpose: str) -> nn.Linear:
    layer = model.get_submodule(classifier_name(model))
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise ValueError(f"{purpose} needs a linear classifier with a bias, found {layer}")
    return layer
