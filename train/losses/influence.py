"""The influence-balanced loss (Park et al., ICCV 2021): samples that move the classifier much count less."""

import torch
from torch import Tensor

from train.losses.functions import at_least_float32, cross_entropy

EPSILON = 0.001  # of the official code; its equation has none


def influence_balanced(
    logits: Tensor, features: Tensor, labels: Tensor, class_weights: Tensor, alpha: float, focal: float = 0.0
) -> Tensor:
    """(1 − e^(−ℓ))^focal · ℓ · α / (g h + ε) of each row, (rows,).

    ℓ = −w_y log p_y; g = sum_c |p_c − 1[c = y]| and h = sum_l |f_l| are the influence of a sample on the weights of the
    classifier. Nothing is detached: the gradient passes the factor too, through p and through f.

    Args:
        logits: (rows, classes).
        features: f, (rows, features), the input of the linear classifier.
        labels: y, int64 (rows,).
        class_weights: w, (classes,).
        alpha: the level of the loss.
        focal: exponent of the focal variant; 0 leaves it out.
    """
    plain = cross_entropy(logits, labels)
    losses = class_weights[labels] * plain
    gradient = -2 * torch.expm1(-plain)  # 2 (1 − p_y), without the cancellation near p_y = 1
    norm = at_least_float32(features).abs().sum(dim=1)
    rows = losses * alpha / (gradient * norm + EPSILON)
    return rows if focal == 0 else (1 - torch.exp(-losses)) ** focal * rows
