"""The influence-balanced loss (Park et al., ICCV 2021): samples with a large effect on the classifier count less."""

import torch
from torch import Tensor

from train.losses.functions import at_least_float32, cross_entropy

EPSILON = 0.001  # from the official code; the paper's equation has none


def influence_balanced(
    logits: Tensor, features: Tensor, labels: Tensor, class_weights: Tensor, alpha: float, focal: float = 0.0
) -> Tensor:
    """(1 − e^(−ℓ))^focal · ℓ · α / (g h + ε) for each row, (rows,).

    ℓ = −w_y log p_y; g = sum_c |p_c − 1[c = y]| and h = sum_l |f_l| are a sample's influence on the classifier's
    weights. Nothing is detached: the gradient also flows through the factor, via p and f.

    Args:
        logits: (rows, classes).
        features: f, (rows, features), the input of the linear classifier.
        labels: y, int64 (rows,).
        class_weights: w, (classes,).
        alpha: the scale of the loss.
        focal: exponent of the focal variant; 0 disables it.
    """
    plain = cross_entropy(logits, labels)
    losses = class_weights[labels] * plain
    gradient = -2 * torch.expm1(-plain)  # 2 (1 − p_y), without the cancellation near p_y = 1
    norm = at_least_float32(features).abs().sum(dim=1)
    rows = losses * alpha / (gradient * norm + EPSILON)
    return rows if focal == 0 else (1 - torch.exp(-losses)) ** focal * rows
