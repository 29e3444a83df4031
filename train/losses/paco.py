"""Parametric contrast (Cui et al., ICCV 2021): class columns and contrast columns in one softmax."""

import math

import torch
from torch import Tensor

from train.losses.functions import at_least_float32


def parametric_contrast(
    adjusted: Tensor,
    anchors: Tensor,
    labels: Tensor,
    columns: Tensor,
    column_labels: Tensor,
    valid: Tensor,
    *,
    alpha: float,
    temperature: float,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """−[β (s_y − D) + α sum_{j in P} (t_j − D)] / (β + α |P|) for each anchor, (anchors,).

    With t_j = a · v_j / T, D = log(sum_c exp s_c + γ sum_j exp t_j) over all columns except the anchor's own; P are
    those with its label. The paper's equation omits the division; the released code has it.

    Args:
        adjusted: s, logits plus log prior, (anchors, classes); no temperature.
        anchors: a, unit rows (anchors, dim).
        labels: int64 (anchors,).
        columns: v, (columns, dim); the anchors come first, in their order.
        column_labels: int64 (columns,).
        valid: bool (columns,), false for padding.
        alpha: α, weight of a positive column.
        temperature: T.
        beta, gamma: β, weight of the sample's own class, and γ, weight of the contrast columns in D.
    """
    s = at_least_float32(adjusted)
    t = at_least_float32(anchors) @ at_least_float32(columns).T / temperature
    positions = torch.arange(len(columns), device=t.device)
    others = (positions != positions[: len(anchors), None]) & valid
    masked = t.masked_fill(~others, float("-inf"))
    weight = math.log(gamma)
    denominator = torch.cat([s, masked + weight], dim=1).logsumexp(dim=1, keepdim=True)
    own = (s - denominator).gather(1, labels[:, None])[:, 0]
    positives = others & (labels[:, None] == column_labels)
    contrast = torch.where(positives, t - denominator, 0.0).sum(dim=1)
    return -(beta * own + alpha * contrast) / (beta + alpha * positives.sum(dim=1))
