"""Losses of long-tailed training, one value per sample.

Every function returns the loss of each sample, (batch,): the mean is over the *global* batch of an optimizer step, and
only the plan knows its size and class weights (see `criterion.py`). Logits are first converted to at least float32:
margins, priors and log-softmax lose small classes in bfloat16.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """bfloat16 and float16 as float32; float32 and float64 unchanged."""
    return values.float() if values.element_size() < 4 else values


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y. logits (batch, classes), labels int64 (batch,)."""
    return F.cross_entropy(at_least_float32(logits), labels, reduction="none")


def balanced_softmax(logits: Tensor, labels: Tensor, log_prior: Tensor) -> Tensor:
    """Cross entropy on z_k + log pi_k, pi_k = n_k / N (Ren et al., NeurIPS 2020, eq. 4). Evaluation uses z itself."""
    return cross_entropy(at_least_float32(logits) + log_prior, labels)


def focal(logits: Tensor, labels: Tensor, exponent: float) -> Tensor:
    """(1 − p_y)^exponent · −log p_y, p the softmax of the logits (Lin et al., ICCV 2017, for a softmax)."""
    losses = cross_entropy(logits, labels)
    # expm1: 1 − p_y near p_y = 1, where most samples end up
    return (-torch.expm1(-losses)) ** exponent * losses


def is_target(labels: Tensor, classes: int) -> Tensor:
    """bool (batch, classes), true at each label. Unlike one_hot it never reads the labels on the host."""
    return labels[:, None] == torch.arange(classes, device=labels.device)


def ldam(cosines: Tensor, labels: Tensor, margins: Tensor, scale: float) -> Tensor:
    """Cross entropy on s (z - m_y onehot(y)), z cosines (Cao et al., NeurIPS 2019, eq. 13)."""
    z = at_least_float32(cosines)
    return cross_entropy(scale * (z - is_target(labels, z.shape[1]) * margins[labels, None]), labels)


def log_prior(samples_per_class: np.ndarray) -> Tensor:
    """log(n_k / N), float32 (classes,), computed in double precision."""
    counts = np.asarray(samples_per_class, dtype=np.float64)
    return torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32))


def log_counts(samples_per_class: np.ndarray) -> Tensor:
    """log n_k, float32 (classes,), computed in double precision."""
    return torch.from_numpy(np.log(samples_per_class).astype(np.float32))


def ldam_margins(samples_per_class: np.ndarray, max_margin: float = 0.5) -> Tensor:
    """m_k = max_margin (n_min / n_k)^(1/4), float32 (classes,) (Cao et al., eq. 12)."""
    counts = np.asarray(samples_per_class, dtype=np.float64)
    return torch.from_numpy((max_margin * (counts.min() / counts) ** 0.25).astype(np.float32))
