"""Classifiers that replace the last linear layer of a backbone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.losses.functions import at_least_float32


class ScaledLinear(nn.Linear):
    """A linear classifier with a learnable factor for each logit, including the bias (LWS, Kang et al., ICLR 2020)."""

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes)
        self.scales = nn.Parameter(torch.ones(classes))

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * self.scales


class CosineClassifier(nn.Module):
    """Cosine of the features and each class vector; no bias, no scale (the loss scales).

    The weight is stored as (features, classes), transposed relative to `nn.Linear`; its columns start uniform(-1, 1),
    scaled to unit norm: the layout of the LDAM and CMO checkpoints (`NormedLinear`).
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        weight = torch.empty(features, classes).uniform_(-1, 1)
        self.weight = nn.Parameter(F.normalize(weight, dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """features (batch, features) → cosines (batch, classes), in float32 even under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(at_least_float32(features), dim=1) @ F.normalize(self.weight, dim=0)


COSINE_SCALE = 25.0  # LIFT and LIFT+


class ScaledCosine(nn.Module):
    """A fixed scale times the cosine of the features and each class vector: the head of LIFT (Shi et al., ICML 2024).

    Weight (classes, features) as in `nn.Linear`, stored unnormalised and normalised in use; rows start uniform(-1, 1),
    scaled to unit norm.
    """

    def __init__(self, features: int, classes: int, scale: float = COSINE_SCALE):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.empty(classes, features).uniform_(-1, 1), dim=1))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """features (batch, features) → logits (batch, classes), in float32 even under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * F.normalize(at_least_float32(features), dim=1) @ F.normalize(self.weight, dim=1).T


class UnitLinear(nn.Linear):
    """A linear classifier with rows initialised as in `ScaledCosine` and a bias of 0; in float32."""

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes)
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight.uniform_(-1, 1), dim=1))
            self.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(at_least_float32(features))


@torch.no_grad()
def set_class_vectors(head: nn.Module, vectors: Tensor, known: Tensor) -> None:
    """Initialise a classifier from normalised class vectors; unknown classes keep their rows.

    Args:
        vectors: (classes, features).
        known: bool (classes,).
    """
    rows = head.weight.T if isinstance(head, CosineClassifier) else head.weight
    assert isinstance(rows, Tensor)
    rows[known] = F.normalize(vectors[known].to(rows), dim=1)


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Normalised means of each class's raw features: float64 (classes, features), and which classes have samples.

    Args:
        features: (rows, features).
        labels: int64 (rows,).
    """
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(0, labels, features.double())
    counts = torch.bincount(labels, minlength=classes)
    return F.normalize(sums / counts.clamp(min=1)[:, None], dim=1), counts > 0


def text_vectors(text: Tensor, text_projection: Tensor, image_projection: Tensor) -> Tensor:
    """Text features in the space before CLIP's image projection: n(n(T · P_text) · P_imageᵀ), n normalises rows.

    Args:
        text: (classes, t); text_projection: (t, e); image_projection: (d, e). Returns (classes, d).
    """
    return F.normalize(F.normalize(text @ text_projection, dim=1) @ image_projection.T, dim=1)


class BiasedCosineClassifier(nn.Module):
    """`scale` · cosine of the features and each class vector + bias: NCL's head at 224 pixels (Li et al., CVPR 2022).

    Weight (classes, features) and bias (classes,) as in `nn.Linear`; the weight starts uniform(±1/√features), the
    bias, which is not scaled, at 0.
    """

    def __init__(self, features: int, classes: int, scale: float):
        super().__init__()
        bound = features**-0.5
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """features (batch, features) → logits (batch, classes), in float32 even under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            cosines = F.normalize(at_least_float32(features), dim=1) @ F.normalize(self.weight, dim=1).T
            return self.scale * cosines + self.bias
