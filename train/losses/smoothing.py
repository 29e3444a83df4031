"""Label-aware smoothing (Zhong et al., CVPR 2021): labels of large classes are smoothed more than small ones."""

import math

import numpy as np
import torch
from torch import Tensor

from train.losses.functions import at_least_float32, cross_entropy


def smoothing_factors(samples_per_class: np.ndarray, head: float, tail: float) -> Tensor:
    """ε of each class, from `tail` for the smallest to `head` for the largest, float32 (classes,).

    It follows sin(π x / 2) with x = (n − min n) / (max n − min n), 0 if all classes have the same size: the concave
    one of the paper's three shapes, which its settings use.
    """
    counts = np.asarray(samples_per_class, dtype=np.float64)
    x = (counts - counts.min()) / max(counts.max() - counts.min(), 1.0)
    return torch.from_numpy((tail + (head - tail) * np.sin(math.pi / 2 * x)).astype(np.float32))


def label_aware_smoothing(logits: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
    """Cross entropy with 1 − ε_y + ε_y / C on the label and ε_y / C on the C − 1 others, (rows,).

    This follows the released code; the paper spreads ε over the other classes only. logits (rows, classes), labels
    int64 (rows,), factors ε (classes,).
    """
    uniform = -at_least_float32(logits).log_softmax(dim=1).mean(dim=1)
    epsilon = factors[labels]
    return (1 - epsilon) * cross_entropy(logits, labels) + epsilon * uniform
