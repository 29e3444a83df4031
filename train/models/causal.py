"""The classifier of Causal Norm, or de-confounded training (Tang et al., NeurIPS 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.losses.functions import at_least_float32

NORM_FLOOR = 1e-12  # not in the official code; keeps a row of zeros from becoming NaN


class CausalClassifier(nn.Module):
    """Normalised heads without a bias, and a running mean of the training features.

    Features f and class vectors w are split into heads of consecutive entries:
    z_c = (scale / heads) sum_k f_k / |f_k| · w_ck / (|w_ck| + 1 / 32).

    Attributes:
        weight: (classes, features), initially uniform(±1 / √features).
        embed: buffer (features,), a running sum of mean features, of which only the direction matters; zeros before
            the first step.
    """

    GAMMA = 1 / 32
    embed: Tensor

    def __init__(self, features: int, classes: int, heads: int = 2, scale: float = 16.0):
        super().__init__()
        if features % heads:
            raise ValueError(f"the classifier has {features} inputs, which is not a multiple of {heads} heads")
        bound = features**-0.5
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-bound, bound))
        self.register_buffer("embed", torch.zeros(features))
        self.heads, self.scale = heads, scale

    def forward(self, features: Tensor) -> Tensor:
        """The training logits, (batch, classes), from (batch, features); in float32 even under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return self._logits(F.normalize(self._cut(features), dim=2, eps=NORM_FLOOR))

    def without_confounder(self, features: Tensor, alpha: float) -> Tensor:
        """The evaluation logits: each head subtracts alpha times its component along the running feature d.

        f_k / |f_k| − alpha cos(f_k, d_k) d_k, with d_k of unit norm; nothing is subtracted while d is zero.
        """
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(self._cut(features), dim=2, eps=NORM_FLOOR)
            direction = F.normalize(self._cut(self.embed[None]), dim=2, eps=NORM_FLOOR)
            cosines = (unit * direction).sum(dim=2, keepdim=True)
            return self._logits(unit - alpha * cosines * direction)

    def _cut(self, vectors: Tensor) -> Tensor:
        """(rows, features) → (rows, heads, features / heads)."""
        return at_least_float32(vectors).unflatten(1, (self.heads, -1))

    def _logits(self, unit: Tensor) -> Tensor:
        weight = self._cut(self.weight)
        weight = weight / (weight.norm(dim=2, keepdim=True) + self.GAMMA)
        return self.scale / self.heads * unit.flatten(1) @ weight.flatten(1).T
