"""Classifiers that replace the last linear layer of a backbone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.losses.functions import at_least_float32


class ScaledLinear(nn.Linear):
    """A linear classifier with a learnable factor for each logit, bias included (LWS of Kang et al., ICLR 2020)."""

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes)
        self.scales = nn.Parameter(torch.ones(classes))

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * self.scales


class CosineClassifier(nn.Module):
    """Cosine of the features and each class vector; no bias, no scale (the loss scales).

    The weight is stored as (features, classes), transposed against ``nn.Linear``; its columns start uniform(-1, 1),
    scaled to unit norm: the layout of the LDAM and CMO checkpoints (``NormedLinear``).
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        weight = torch.empty(features, classes).uniform_(-1, 1)
        self.weight = nn.Parameter(F.normalize(weight, dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """features (batch, features) → cosines (batch, classes), in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(at_least_float32(features), dim=1) @ F.normalize(self.weight, dim=0)


class BiasedCosineClassifier(nn.Module):
    """``scale`` · cosine of the features and each class vector + bias: NCL's head at 224 pixels (Li et al., CVPR 2022).

    Weight (classes, features) and bias (classes,) as in ``nn.Linear``; the weight starts uniform(±1/√features), the
    bias, which the scale does not touch, at 0.
    """

    def __init__(self, features: int, classes: int, scale: float):
        super().__init__()
        bound = features**-0.5
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """features (batch, features) → logits (batch, classes), in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            cosines = F.normalize(at_least_float32(features), dim=1) @ F.normalize(self.weight, dim=1).T
            return self.scale * cosines + self.bias
