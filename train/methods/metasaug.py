"""Meta semantic augmentation, MetaSAug (Li et al., CVPR 2021), training the whole network with full covariances.

After a first phase of plain cross entropy, logits are augmented implicitly: for a sample of class y, the logit of class
j increases by half the variance of (w_j − w_y)ᵀ f under the covariance Σ_y of the features of class y (ISDA). Before
each step, Σ itself takes one gradient step on a small balanced meta set, through a virtual step of the network
("bi-level"). The corrected Σ' is used only for that step; the running estimate does not include it.

With the published rates the correction is tiny: it changes Σ by a millionth and the loss by less, so it vanishes in
half precision and is close to the resolution of float32. Accuracy comes from the deferred class weights, the margins
and the plain augmentation. The correction is computed in float32 regardless of the run's precision, and without TF32,
to which a GPU otherwise rounds the inputs of convolutions.

The formulas are those of the released code, which updates the statistics in the training loss only; an earlier revision
also updated them in the virtual step.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.plan import Stream
from pipeline.sampling import Redrawn, Shuffled
from pipeline.views.view import OneOf, View
from shards.class_counts import effective_number_weights
from train.losses.class_statistics import ClassStatistics, SumOverRanks, sum_over_ranks
from train.losses.criterion import EFFECTIVE_NUMBER_BETA
from train.losses.functions import cross_entropy, is_target, ldam_margins
from train.losses.precision import full_float32
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs, StepOutput
from train.methods.parts import Mixing, Objective, Stage
from train.models.build import ModelOptions
from train.models.semantic import SemanticNetwork, build_network

logger = logging.getLogger(__name__)

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class AugmentedLoss:
    """L_aug = Σ_i s_i CE(a_i, y_i), a_ij = z_ij + ½ρ (w_j − w_y)ᵀ Σ_y (w_j − w_y) − [j = y] m_y, for fixed samples.

    Args:
        labels: y, int64 (rows,).
        shares: s, (rows,): w_y / Σ w over the batch, including class weights; 0 for padding.
        present: int64, ascending: the classes of the given covariances; includes all labels.
        strength: ρ, a scalar.
        margins: m, (classes,), or None.
    """

    labels: Tensor
    shares: Tensor
    present: Tensor
    strength: Tensor | float
    margins: Tensor | None = None

    def __call__(self, logits: Tensor, weight: Tensor, covariances: Tensor) -> Tensor:
        """The scalar; differentiable in all arguments, twice.

        Args:
            logits: z, (rows, classes).
            weight: w, (classes, features), of the classifier that produced them.
            covariances: of the present classes: full (present, features, features) or diagonal (present, features).
        """
        augmented = self.augmented(logits, weight, covariances)
        return (self.shares * F.cross_entropy(augmented, self.labels, reduction="none")).sum()

    def augmented(self, logits: Tensor, weight: Tensor, covariances: Tensor) -> Tensor:
        """The logits a, (rows, classes)."""
        rows = torch.searchsorted(self.present, self.labels)
        if covariances.ndim == 3:
            # Once per present class, not per row: (present, classes, features).
            differences = weight - weight[self.present][:, None]
            variance = ((differences @ covariances) * differences).sum(dim=2)[rows]
        else:
            # Expanded, (w_j − w_y)² = w_j² − 2 w_j w_y + w_y²: the differences of a large set would not fit in memory.
            s, own = covariances[rows], weight[self.labels]
            variance = s @ weight.T**2 - 2 * (s * own) @ weight.T + (s * own**2).sum(dim=1, keepdim=True)
        augmented = logits + 0.5 * self.strength * variance
        if self.margins is None:
            return augmented
        return augmented - is_target(self.labels, logits.shape[1]) * self.margins[self.labels, None]


@dataclass(frozen=True)
class VirtualNetwork:
    """The parameters that a virtual step moves, and the logits of both batches under moved parameters.

    weight_name: the name among `parameters` of the classifier's weight (classes, features).
    """

    parameters: Parameters
    weight_name: str
    logits: Callable[[Parameters], Tensor]
    meta_logits: Callable[[Parameters], Tensor]


def corrected_covariances(
    covariances: Tensor,
    parameters: Parameters,
    inner_loss: Callable[[Parameters, Tensor], Tensor],
    meta_loss: Callable[[Parameters], Tensor],
    virtual_lr: Tensor | float,
    meta_lr: float,
    total: SumOverRanks,
) -> Tensor:
    """Σ' = Σ − η_meta ∇_Σ L_meta(θ'), with θ'(Σ) = θ − η_in ∇_θ L_aug(θ; Σ); afterwards a constant.

    By the chain rule ∇_Σ L_meta = −η_in ∂/∂Σ ⟨∇_θ L_aug(θ; Σ), v⟩ with v = ∇_θ' L_meta held constant. So only the inner
    gradient needs a graph, and processes exchange only the sums of θ', v and the result.

    Args:
        parameters: θ by name.
        inner_loss, meta_loss: this process's shares of L_aug(θ; Σ) and L_meta(θ').
    """
    names = list(parameters)
    theta = {name: parameters[name].detach().requires_grad_() for name in names}
    sigma = covariances.detach().requires_grad_()
    gradients = torch.autograd.grad(inner_loss(theta, sigma), list(theta.values()), create_graph=True)
    steps = total([gradient.detach() for gradient in gradients])
    virtual = {
        name: (theta[name].detach() - virtual_lr * step).requires_grad_()
        for name, step in zip(names, steps, strict=True)
    }
    directions = total(torch.autograd.grad(meta_loss(virtual), list(virtual.values())))
    product = torch.stack([(g * v).sum() for g, v in zip(gradients, directions, strict=True)]).sum()
    (slope,) = total(torch.autograd.grad(product, [sigma]))
    return covariances + meta_lr * virtual_lr * slope


@dataclass(frozen=True)
class MetaSAugOptions:
    """The augmented loss and the meta step.

    Args:
        loss: ldam (margins as in LDAM, without its scale and cosine classifier, as published) or ce.
        strength: lambda; in epoch e of E the augmentation has strength rho = lambda · e / E.
        meta_from_epoch: first zero-based epoch of the second phase, for a run of schedule.for_epochs epochs.
        meta_lr: step size of the correction of the covariances.
        late_virtual_lr: the virtual step uses the learning rate of the epoch before, as in the official code, whose
            virtual step counts epochs from zero and whose optimizer from one; this only affects epoch 179 of 200.
        statistics: global (all processes share one estimate, one correction and one sum of class weights) or local
            (each process has its own, as in the official code; runs of several processes then cannot be resumed).
    """

    loss: Literal["ldam", "ce"] = "ldam"
    strength: float = 0.25
    meta_from_epoch: int = 160
    meta_lr: float = 0.1
    late_virtual_lr: bool = False
    statistics: Literal["global", "local"] = "global"

    def __post_init__(self) -> None:
        for name in ("strength", "meta_lr"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"method.{name} is {value}, expected a finite number of at least 0")
        if self.meta_from_epoch < 0:
            raise ValueError(f"method.meta_from_epoch is {self.meta_from_epoch}, expected an epoch, counted from 0")


class MetaSAug(Objective):
    """One stream and, in the second phase, a balanced meta stream; both with training augmentation."""

    Options: ClassVar[type] = MetaSAugOptions
    own_stage: ClassVar[type[Stage]] = Stage
    accumulates = False  # the virtual step needs the gradient of the whole batch
    not_captured_because = "the number of classes in a batch, and with it the size of its statistics, varies"
    without: ClassVar[Mapping[str, str]] = {
        "mixup_prob": "the class statistics need images of a single class; a pasted image has two"
    }
    trains_encoder = True

    def __init__(self, options: MetaSAugOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        counts = context.samples_per_class
        self.meta_epoch = context.schedule.rescaled(options.meta_from_epoch)
        self.class_weights = effective_number_weights(counts, EFFECTIVE_NUMBER_BETA)
        self.margins = ldam_margins(counts).to(context.device) if options.loss == "ldam" else None
        self.total: SumOverRanks = sum_over_ranks if options.statistics == "global" else list
        self.statistics: ClassStatistics
        self._change: Tensor | None = None  # (2,): norms of the last correction and of the corrected covariances

    def streams(self) -> tuple[Stream, ...]:
        return (Stream("original", Shuffled(), (self.context.view,)), self.meta_stream(Redrawn(), self.context.view))

    def meta_stream(self, sampling: Redrawn, view: View | OneOf) -> Stream:
        """The balanced stream, which exists only in the second phase."""
        return Stream("meta", sampling, (view,), dataset="meta", first_epoch=self.meta_epoch, full_batches=True)

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        network = build_network(options, self.classes, seed, frozen=not self.trains_encoder)
        features = network.classifier.in_features
        self.statistics = ClassStatistics(self.classes, features, not self.trains_encoder, self.context.device)
        return network

    def values(self, plan: MicroPlan) -> StepInputs:
        epoch = plan.step.epoch
        if epoch < self.meta_epoch:
            return {}
        labels = plan.global_labels("original")
        weights = self.class_weights[labels]
        return {
            "present": np.unique(labels),
            # w_y / Σ w over the global batch, for these rows.
            "shares": weights[plan.positions] / weights.sum(),
            "meta_share": np.array(1 / plan.global_size("meta")),
            "strength": np.array(self.strength(epoch)),
            "virtual_lr": np.array(self.virtual_lr(epoch)),
        }

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        batch = step.batches["original"]
        features, logits = model(self.context.input_builder.plain(batch.images[0]))
        if "meta" not in step.batches:
            rows = cross_entropy(logits, batch.labels) * batch.weights
            return StepOutput(rows.sum() / step.global_batch_size, logits)
        present = step.values["present"]
        network = extract_model_from_parallel(model)
        with torch.autocast(self.context.device.type, enabled=False):
            virtual = self.virtual_network(network, step, features.detach())
            with full_float32():
                corrected = self._corrected(virtual, step)
            loss = self._augmented_loss(step, self._outer_shares(step))
            value = loss(logits.float(), network.classifier.weight, corrected)
            self.statistics.update(features.detach().float(), batch.labels, batch.weights, present, self.total)
        return StepOutput(value, logits)

    def virtual_network(self, network: SemanticNetwork, step: MicroStep, features: Tensor) -> VirtualNetwork:
        """The parameters of the virtual step: here all, so `features`, from the real step, are not used."""
        plain = self.context.input_builder.plain
        images, meta_images = (plain(step.batches[name].images[0]) for name in ("original", "meta"))
        return VirtualNetwork(
            dict(network.named_parameters()),
            f"{network.classifier_name}.weight",
            lambda parameters: _logits(network, parameters, images),
            lambda parameters: _logits(network, parameters, meta_images),
        )

    def _corrected(self, virtual: VirtualNetwork, step: MicroStep) -> Tensor:
        """Σ' of the present classes."""
        loss = self._augmented_loss(step, self._inner_shares(step))
        meta_labels, meta_shares = step.batches["meta"].labels, self._meta_shares(step)

        def inner_loss(parameters: Parameters, covariances: Tensor) -> Tensor:
            return loss(virtual.logits(parameters), parameters[virtual.weight_name], covariances)

        def meta_loss(parameters: Parameters) -> Tensor:
            return (meta_shares * cross_entropy(virtual.meta_logits(parameters), meta_labels)).sum()

        covariances = self.statistics.covariances[step.values["present"]]
        lr, meta_lr = step.values["virtual_lr"], self.options.meta_lr
        corrected = corrected_covariances(
            covariances, virtual.parameters, inner_loss, meta_loss, lr, meta_lr, self.total
        )
        self._change = torch.stack([(corrected - covariances).norm(), covariances.norm()])
        return corrected

    def virtual_lr(self, epoch: int) -> float:
        """η_in of an epoch."""
        return self.context.schedule.lr(max(epoch - self.options.late_virtual_lr, 0))

    def strength(self, epoch: int) -> float:
        """ρ_e = λ e / E."""
        return self.options.strength * epoch / self.context.schedule.epochs

    def _augmented_loss(self, step: MicroStep, shares: Tensor) -> AugmentedLoss:
        values = step.values
        return AugmentedLoss(
            step.batches["original"].labels, shares, values["present"], values["strength"], self.margins
        )

    def _shares(self, step: MicroStep) -> Tensor:
        return step.values["shares"] * step.batches["original"].weights

    def _inner_shares(self, step: MicroStep) -> Tensor:
        """The same over the virtual step's batch: the global one, or this process's, which may be only padding."""
        shares = self._shares(step)
        return shares if self.options.statistics == "global" else shares / shares.sum().clamp(min=1e-12)

    def _outer_shares(self, step: MicroStep) -> Tensor:
        """The same for the training loss: with local statistics, the mean over processes, each on its own batch."""
        return self._inner_shares(step) / (1 if self.options.statistics == "global" else _processes())

    def _meta_shares(self, step: MicroStep) -> Tensor:
        weights = step.batches["meta"].weights
        return weights * step.values["meta_share"] if self.options.statistics == "global" else weights / weights.sum()

    def after_epoch(self, epoch: int) -> None:
        if self._change is not None and not (dist.is_initialized() and dist.get_rank()):
            change, norm = self._change.tolist()
            if norm:
                share = change / norm
                logger.info("epoch %d: the last meta step moved the covariances by %.2g of their norm", epoch, share)
            else:
                logger.info("epoch %d: the last meta step moved covariances of 0 by %.2g", epoch, change)

    def state_dict(self) -> dict[str, Tensor]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.options.statistics == "local" and _processes() > 1:
            raise ValueError(
                f"method.statistics is local, and a checkpoint has only those of the first of {_processes()} "
                "processes, so the run cannot continue exactly; start over, or use method.statistics global"
            )
        self.statistics.load_state_dict(state)

    def prediction(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[1]

    def derived_options(self) -> dict[str, Any]:
        return {"meta_from_epoch": self.meta_epoch}


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _logits(network: SemanticNetwork, parameters: Parameters, images: Tensor) -> Tensor:
    """Logits under other parameters; batch norm uses its batch and does not change the running statistics."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.compiler.set_stance("force_eager"):  # compiled code cannot be differentiated twice
        return functional_call(network, (dict(parameters), buffers), (images,))[1]
