"""Global and local mixture consistency cumulative learning, GLMC (Du et al., CVPR 2023).

Each step mixes two views of the original batch with two views of a weighted one: the first views by MixUp (global), the
second by CutMix (local), with one λ and one box for the whole batch. The two mixes go through the network one after the
other, so batch norm sees them separately. One classifier, `fc`, learns the mixed labels unchanged; the other, `fc_cb`,
learns them re-balanced and is the one evaluated. Weight moves from the first to the second over the epochs, and each
mix has to predict the other's projection. The formulas are those of the last revision of the released code, of July
2023.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.mix_rule import MixPlan, MixRule, Rounding
from pipeline.plan import Stream
from pipeline.sampling import ClassWeighted, Shuffled
from shards.class_counts import power_law_weights
from train.losses.functions import at_least_float32, cross_entropy, log_counts
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs, StepOutput
from train.methods.parts import Mixing, Objective, Stage
from train.models.build import ModelOptions
from train.models.glmc import GLMCNetwork, Heads, build_network


@dataclass(frozen=True)
class GLMCOptions:
    """The mixing of batches and the targets of the two classifiers.

    Args:
        rebalance: the target of `fc_cb`: reweight (labels weighted by n_k^(-label_exponent), mean 1) or bs (labels
            unchanged, balanced softmax).
        label_exponent: exponent of the labels' class weights ("label_weighting" in the official code); bs has no such
            weights.
        weighted_alpha: samples of class k are drawn into the weighted stream with weight n_k^(-alpha)
            ("resample_weighting"): 0 is instance-balanced, 1 class-balanced.
        contrast_weight: gamma, the weight of the consistency between the two mixes.
        beta: lam, the weight of the original batch, is drawn from Beta(beta, beta).
        correct_lambda: replace lam by the share of the image outside the clipped box. It then weights the labels and
            blends the global mix, so both mixes have the same label. The official code keeps lam as drawn, although
            at 32 pixels a box covers 0.32 of the image on average but counts for 0.5 of the label; reproducing the
            published numbers requires that.
        rounding: rounding of the box's side: ceil as in the official code, or floor as in CMO's.
        mixup_prob: probability that a step mixes.
        plain_first: epochs at the start that do not mix.
        plain_last: epochs at the end that do not mix.
    """

    rebalance: Literal["reweight", "bs"] = "reweight"
    label_exponent: float = 1.0
    weighted_alpha: float = 0.2
    contrast_weight: float = 10.0
    beta: float = 1.0
    correct_lambda: bool = True
    rounding: Rounding = "ceil"
    mixup_prob: float = 1.0
    plain_first: int = 0
    plain_last: int = 0

    def __post_init__(self) -> None:
        for name in ("label_exponent", "weighted_alpha", "contrast_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"method.{name} is {value}, expected a finite number of at least 0")
        default = GLMCOptions.label_exponent
        if self.rebalance == "bs" and self.label_exponent != default:
            raise ValueError(
                f"method.label_exponent is {self.label_exponent}, but the balanced softmax learns unchanged labels; "
                f"set method.rebalance to reweight, or set label_exponent to {default}"
            )
        self.mix_rule()

    def mix_rule(self) -> MixRule:
        """When and how a step mixes.

        Raises:
            ValueError: a probability, beta or number of epochs is out of range.
        """
        return MixRule(
            kind="cutmix",
            probability=self.mixup_prob,
            beta=self.beta,
            plain_first=self.plain_first,
            plain_last=self.plain_last,
            rounding=self.rounding,
            correct_lambda=self.correct_lambda,
        )


class GLMC(Objective):
    """Two streams of two views, two passes, two classifiers."""

    Options = GLMCOptions
    own_stage = Stage
    without: ClassVar[Mapping[str, str]] = {
        "loss": "LDAM's margins are for cosines and one label; GLMC's classifiers are linear and learn two"
    }

    def __init__(self, options: GLMCOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        counts = context.samples_per_class
        self.class_weights = power_law_weights(counts, options.label_exponent)
        self.log_counts = log_counts(counts).to(context.device)

    def streams(self) -> tuple[Stream, ...]:
        views = (self.context.view, self.context.view)
        weighted = ClassWeighted(self.options.weighted_alpha)
        return (Stream("original", Shuffled(), views), Stream("foreground", weighted, views, when="mixing"))

    def mix_rule(self) -> MixRule:
        return self.options.mix_rule()

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        return build_network(GLMCNetwork, options, self.classes, seed)

    def values(self, plan: MicroPlan) -> StepInputs:
        assert plan.mix is not None, "GLMC has a mix rule"
        weighted = plan.labels("foreground" if plan.mix.paste else "original")
        targets, rebalanced = self.targets(plan.mix, plan.labels("original"), weighted)
        numbers = {"targets": targets, "rebalanced_targets": rebalanced, "alpha": np.array(self.alpha(plan.step.epoch))}
        return {"lam": plan.mix.lam, "boxes": plan.mix.boxes, **numbers}

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        """L = Σ_b L_b / B over the global batch."""
        original, values = step.batches["original"], step.values
        # Without a mix λ is 1 and the box is empty: mixing the original batch with itself leaves it unchanged.
        weighted = step.batches.get("foreground", original)
        input_builder = self.context.input_builder
        global_heads, local_heads = model(
            input_builder.mixup(original.images[0], weighted.images[0], values["lam"]),
            input_builder.paste(original.images[1], weighted.images[1], values["boxes"]),
        )
        labels = torch.stack([original.labels, weighted.labels], dim=1)
        targets = (values["targets"], values["rebalanced_targets"])
        rows = self.per_sample(values["alpha"], global_heads, local_heads, labels, *targets)
        return StepOutput((rows * original.weights).sum() / step.global_batch_size, global_heads.rebalanced)

    def targets(self, mix: MixPlan, original: np.ndarray, weighted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mass of the soft labels t and, for `fc_cb`, tw on each row's two labels; both float64 (rows, 2).

        t = (λ, 1−λ) and tw = (λ w[y_o], (1−λ) w[y_w]), not renormalised; with the balanced softmax tw is t.
        """
        shares = np.stack([mix.lam, 1 - mix.lam], axis=1)
        if self.options.rebalance == "bs":
            return shares, shares
        return shares, shares * self.class_weights[np.stack([original, weighted], axis=1)]

    def per_sample(
        self, alpha: Tensor, global_mix: Heads, local_mix: Heads, labels: Tensor, targets: Tensor, rebalanced: Tensor
    ) -> Tensor:
        """α_e L_bal + (1−α_e) L_reb + γ L_con for each row, at least float32 (rows,).

        Args:
            alpha: α_e, a scalar.
            labels: int64 (rows, 2), of the original and the weighted image.
            targets, rebalanced: float (rows, 2), the mass of t and tw on these labels.
        """
        prior = self.log_counts if self.options.rebalance == "bs" else 0.0
        plain = sum(_soft_cross_entropy(mix.plain, labels, targets) for mix in (global_mix, local_mix))
        cumulative = sum(
            _soft_cross_entropy(at_least_float32(mix.rebalanced) + prior, labels, rebalanced)
            for mix in (global_mix, local_mix)
        )
        agreement = _cosine(global_mix.prediction, local_mix.projection.detach())
        agreement = agreement + _cosine(local_mix.prediction, global_mix.projection.detach())
        return alpha * plain + (1 - alpha) * cumulative - self.options.contrast_weight * agreement

    def alpha(self, epoch: int) -> float:
        """α_e = 1 − (e/E)², the weight of the plain classifier."""
        return 1 - (epoch / self.context.schedule.epochs) ** 2

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        assert isinstance(model, GLMCNetwork)
        return model.evaluated_logits(images)[None]

    def derived_options(self) -> dict[str, Any]:
        return {"alpha_of_last_epoch": self.alpha(self.context.schedule.epochs - 1)}


def _soft_cross_entropy(logits: Tensor, labels: Tensor, mass: Tensor) -> Tensor:
    """−Σ_c t_c log softmax(z)_c for a soft label t with mass on two classes, which may be equal; (rows,)."""
    return mass[:, 0] * cross_entropy(logits, labels[:, 0]) + mass[:, 1] * cross_entropy(logits, labels[:, 1])


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return F.cosine_similarity(at_least_float32(first), at_least_float32(second), dim=1)
