"""Remix (Chou et al., ECCV workshops 2020): Mixup whose label leans towards the smaller class.

Images are blended by lam as in Mixup. The label is decoupled from lam: if one class has at least kappa times the
samples of the other and the smaller one is not too faint, the smaller class gets the whole label.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.mix_rule import MixPlan
from train.methods.base import MicroPlan
from train.methods.mixings.mixup import MixupOptions
from train.methods.mixings.two_streams import TwoStreams


def remix_label_share(
    lam: np.ndarray, first_counts: np.ndarray, second_counts: np.ndarray, kappa: float, tau: float
) -> np.ndarray:
    """Weight of the first image's label, float64 (rows,): the three cases of lambda_y in the paper.

    0 if n_first / n_second >= kappa and lam < tau; 1 if n_first / n_second <= 1 / kappa and 1 - lam < tau; otherwise
    lam. Counts are the training samples of the two images' classes, (rows,) each.
    """
    ratio = first_counts / second_counts
    return np.select([(ratio >= kappa) & (lam < tau), (ratio <= 1 / kappa) & (1 - lam < tau)], [0.0, 1.0], lam)


@dataclass(frozen=True)
class RemixOptions(MixupOptions):
    """When the smaller class gets the whole label.

    Args:
        beta: lam is drawn from Beta(beta, beta).
        remix_kappa: how many times larger the other class must be.
        remix_tau: the larger class's share of the image must be below this.
    """

    remix_kappa: float = 3.0
    remix_tau: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remix_kappa < 1 or not 0 <= self.remix_tau <= 1:
            raise ValueError(
                f"method: remix_kappa is {self.remix_kappa}, remix_tau {self.remix_tau}; expected remix_kappa >= 1, "
                "remix_tau in [0, 1]"
            )


class Remix(TwoStreams):
    """Mixup with different label weights."""

    Options = RemixOptions

    def background_share(self, plan: MicroPlan, mix: MixPlan) -> np.ndarray:
        counts = self.context.samples_per_class
        first, second = (counts[plan.labels(name)] for name in ("original", "foreground"))
        return remix_label_share(mix.lam, first, second, self.options.remix_kappa, self.options.remix_tau)
