"""Logit-adjusted cross entropy (Menon et al., ICLR 2021, eq. 10): CE on z_k + tau · log pi_k.

tau = 1 is the balanced softmax. The paper's post-hoc form (eq. 9), which subtracts the prior from the logits of a
plainly trained network, needs no training: `python -m tools.evaluate --logit-adjustment TAU`.
"""

from dataclasses import dataclass

from train.losses.criterion import Criterion
from train.methods.vanilla import Vanilla


@dataclass(frozen=True)
class LogitAdjustmentOptions:
    """The strength of the prior.

    Args:
        tau: exponent of the class prior in the loss.
    """

    tau: float = 1.0


class LogitAdjustment(Vanilla):
    """One stream, one view, one forward pass; only the criterion is its own."""

    Options = LogitAdjustmentOptions

    def make_criterion(self) -> Criterion:
        return Criterion(
            "bs", "none", self.context.samples_per_class, 0, self.context.device, prior_exponent=self.options.tau
        )
