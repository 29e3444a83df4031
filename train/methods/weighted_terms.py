"""Labelled terms whose coefficients belong to the global batch of an optimizer step."""

import numpy as np
from torch import Tensor

from train.losses.criterion import Criterion
from train.methods.base import MicroPlan, MicroStep, StepInputs, key


class WeightedTerms:
    """The class weights of a criterion, over the global batch; objectives with a criterion use it.

    One labelled term is sum_i share_i c_i L(z_i, y_i), with c_i from `Criterion.coefficients`.
    """

    def __init__(self, criterion: Criterion):
        self.criterion = criterion

    def inputs(self, plan: MicroPlan, stream: str, share: np.ndarray | float) -> StepInputs:
        """The coefficients of this micro-batch's rows of a stream, times the weight of its labels."""
        epoch = plan.step.epoch
        coefficients = np.full(len(plan.positions), 1 / plan.global_size(stream))
        if self.criterion.weighs_classes(epoch):  # else no label of another rank is needed
            coefficients = self.criterion.coefficients(epoch, plan.global_labels(stream))[plan.positions]
        return {key(stream, "coefficients"): share * coefficients}

    @staticmethod
    def share(step: MicroStep, stream: str, rows: Tensor) -> Tensor:
        """This micro-batch's part of the term, from the loss of each of its rows."""
        return (step.values[key(stream, "coefficients")] * step.batches[stream].weights * rows).sum()
