"""Classifiers that replace the last linear layer of a backbone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
            return F.normalize(features.float(), dim=1) @ F.normalize(self.weight.float(), dim=0)
