"""Label distribution disentangling, LADE (Hong et al., CVPR 2021): its regulariser, over the global batch."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from train.losses.functions import at_least_float32

EPSILON = 1e-9  # inside the logarithms, as in the official code
_NEVER = -1e30  # logit of a padding row; not −∞, because a process may have nothing else

Gather = Callable[[Tensor], Tensor]


def gather_rows(row: Tensor) -> Tensor:
    """One row per process, (processes, …), without gradient; without a process group, just the row."""
    if not dist.is_initialized():
        return row[None]
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row.contiguous())
    return torch.stack(rows)


def log_with_epsilon(prior: np.ndarray) -> Tensor:
    """log(π + 1e-9), float32 (classes,), computed in double precision."""
    return torch.from_numpy(np.log(prior + EPSILON).astype(np.float32))


def lade_regulariser(
    logits: Tensor,
    labels: Tensor,
    coefficients: Tensor,
    weights: Tensor,
    prior: Tensor,
    penalty: float,
    batch_size: int,
    gather: Gather = gather_rows,
) -> Tensor:
    """This process's share of L_r = sum_c π_c (−t_c + s_c + λ s_c²), a scalar; shares and gradients add up.

    t_c is the mean logit z_c of the samples of class c in the global batch, 0 if there is none, and
    s_c = log mean_i exp z_ic − log π_c + log 1/C over all its samples. All classes count, including absent ones.

    With a_c the log-sum-exp over this process's rows and G_c that over all rows, ω_c = exp(a_c − G_c) is its part of
    the gradient of s_c. Only the values a_c are exchanged.

    Args:
        logits: z, (rows, classes).
        labels: int64 (rows,).
        coefficients: π_y / N_y for each row, with N_y the samples of its class in the global batch.
        weights: (rows,), 1, or 0 for padding.
        prior: π, (classes,).
        penalty: λ.
        batch_size: samples of the global batch.
        gather: maps this process's row to those of all processes, (processes, classes), without gradient.
    """
    z = at_least_float32(logits)
    own = torch.logsumexp(torch.where(weights[:, None] > 0, z, _NEVER), dim=0)
    total = torch.logsumexp(gather(own.detach()), dim=0)
    s = total - math.log(batch_size) - torch.log(prior + EPSILON) + math.log(1 / len(prior) + EPSILON)
    part = prior * torch.exp(own.detach() - total)
    value = (part * (s + penalty * s**2)).sum()
    slope = (part * (1 + 2 * penalty * s) * own).sum()
    targets = (coefficients * weights * z.gather(1, labels[:, None])[:, 0]).sum()
    return slope + (value - slope).detach() - targets
