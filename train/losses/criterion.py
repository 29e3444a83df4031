"""Which loss a run minimises and how it weights classes, epoch by epoch.

The loss of a step is sum_i c_i loss_i over the global batch, with coefficients that the host computes from the plan:
c_i = w_{y_i} / sum_j w_{y_j}. The denominator is that of the optimizer step's global batch; computed per rank it would
be wrong by tens of percent with class weights. Ranks and micro-batches therefore sum their shares and need no
communication before the backward pass.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shards.class_counts import effective_number_weights, power_law_weights
from train.losses import functions

Loss = Literal["ce", "bs", "la", "ldam", "focal"]
Rule = Literal["none", "reweight", "inverse", "drw"]

LDAM_SCALE = 30.0  # Cao et al., NeurIPS 2019, and the official CMO code
FOCAL_EXPONENT = 2.0  # the best of Lin et al., ICCV 2017, and LIFT's
EFFECTIVE_NUMBER_BETA = 0.9999  # Cui et al., CVPR 2019; the value of the LDAM-DRW and CMO code


class Criterion:
    """A loss with its class statistics, and the class weights of an epoch.

    Args:
        loss: "ce", "bs" (balanced softmax), "la" (by an exponent of the prior), "focal" or "ldam" (needs a cosine head,
            see `head`).
        rule: "none", "reweight" (effective-number class weights), "inverse" (class weights ∝ 1 / n_k) or "drw" (those
            of "reweight" from `drw_epoch` on).
        samples_per_class: training counts (classes,), never adjusted for oversampling.
        drw_epoch: first zero-based epoch with class weights under "drw".
        prior_exponent: exponent of the class prior under "la"; the balanced softmax has 1.
    """

    def __init__(
        self,
        loss: Loss,
        rule: Rule,
        samples_per_class: np.ndarray,
        drw_epoch: int,
        device: torch.device,
        prior_exponent: float = 1.0,
    ):
        if loss in ("bs", "la") and rule != "none":
            raise ValueError(f"the balanced softmax corrects the prior itself; method.rule is {rule}, expected none")
        self.loss, self.rule, self.drw_epoch = loss, rule, drw_epoch
        self._classes = len(samples_per_class)
        self._weights = (
            power_law_weights(samples_per_class, 1.0)
            if rule == "inverse"
            else effective_number_weights(samples_per_class, EFFECTIVE_NUMBER_BETA)
        )
        self._log_prior = (prior_exponent if loss == "la" else 1.0) * functions.log_prior(samples_per_class).to(device)
        self._margins = functions.ldam_margins(samples_per_class).to(device)

    @property
    def head(self) -> Literal["linear", "cosine"]:
        """The classifier that the loss is defined for."""
        return "cosine" if self.loss == "ldam" else "linear"

    def per_sample(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Unweighted loss of each sample, float32 (batch,)."""
        if self.loss in ("bs", "la"):
            return functions.balanced_softmax(logits, labels, self._log_prior)
        if self.loss == "ldam":
            return functions.ldam(logits, labels, self._margins, LDAM_SCALE)
        if self.loss == "focal":
            return functions.focal(logits, labels, FOCAL_EXPONENT)
        return functions.cross_entropy(logits, labels)

    def weighs_classes(self, epoch: int) -> bool:
        """Whether the rule is on."""
        return self.rule in ("reweight", "inverse") or (self.rule == "drw" and epoch >= self.drw_epoch)

    def class_weights(self, epoch: int) -> np.ndarray:
        """float64 (classes,), mean 1: all ones if the rule is off."""
        return self._weights if self.weighs_classes(epoch) else np.ones(self._classes)

    def coefficients(self, epoch: int, global_labels: np.ndarray) -> np.ndarray:
        """w_{y_i} / sum_j w_{y_j} for every sample of the global batch, float64 (batch,)."""
        weights = self.class_weights(epoch)[global_labels]
        return weights / weights.sum()
