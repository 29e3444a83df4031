"""Nested collaborative learning, NCL (Li et al., CVPR 2022), its contrastive branch, and NCL++.

K whole networks ("experts") learn the same images, each with the balanced softmax on all classes and on its hard
classes, and learn from each other on both. With raw logits z_k, counts n and a mask of the hard classes

    v_k = z_k + log n,    h_k = v_k · mask
    L   = sum_k CE(v_k, y) + CE(h_k, y)  +  KD(v) + KD(h)  +  sum_k contrast_k

Masked classes have logit 0, not −∞: each still contributes e^0 to the softmax, and the constant in log n matters. The
mask comes from the first expert only, without the prior. Losses are summed over experts, and neither side of a KL is
detached.

The formulas are those of the released code, which also contains NCL++ as a variant.

If two images are mixed, L is lam · L(·, background) + (1 − lam) · L(·, foreground), each with its own mask.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.views.view import OneOf, View
from train.losses.functions import at_least_float32, cross_entropy, log_counts
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs
from train.methods.parts import Mixing, Objective
from train.models.build import ModelOptions, with_synchronised_batch_norm
from train.models.heads import BiasedCosineClassifier
from train.models.ncl import ContrastiveExperts, KeyQueue, build_contrastive_experts, build_experts

EPSILON = 1e-9  # inside the logarithm of the official code's divergence


def hard_mask(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """1 at the label and the highest other logits, `classes` in total; 0 elsewhere. logits (rows, all classes)."""
    scores = logits.detach().scatter(1, labels[:, None], float("inf"))
    return torch.zeros_like(scores).scatter(1, scores.topk(classes, dim=1).indices, 1.0)


def individual_loss(balanced: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """sum_k CE(v_k, y) + CE(v_k · mask, y) for each row. balanced (experts, rows, classes)."""
    terms = [cross_entropy(v, labels) + cross_entropy(v * mask, labels) for v in balanced]
    return torch.stack(terms).sum(dim=0)


def divergences(logits: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """sum over ordered pairs i ≠ j of sum_c weight_c p_j (log p_j − log(p_i + 1e-9)) for each row, (rows,).

    logits (members, rows, classes); weight per class, broadcast against (rows, classes).
    """
    log_p = F.log_softmax(logits, dim=2)
    p = log_p.exp()
    pairs = permutations(range(len(logits)), 2)
    terms = [(weight * p[j] * (log_p[j] - (p[i] + EPSILON).log())).sum(dim=1) for i, j in pairs]
    return torch.stack(terms).sum(dim=0)


def nested_distillation(balanced: Tensor, mask: Tensor) -> Tensor:
    """KD(v) + KD(v · mask) for each row (NBOD), without its factor: mean over partners, sum over experts."""
    return (divergences(balanced) + divergences(balanced * mask)) / (len(balanced) - 1)


def partial_distillation(members: Tensor, mask: Tensor) -> Tensor:
    """NCL++'s divergence for each row, without its factor: over all classes and, with the same p, the hard ones."""
    count = len(members)
    return 2 / (count * (count - 1)) * (divergences(members) + divergences(members, mask))


def ncl_loss(logits: Tensor, labels: Tensor, log_counts: Tensor, hard: int, distillation: float) -> Tensor:
    """NCL's loss for each row without its contrastive part, (rows,).

    Args:
        logits: raw (experts, rows, classes).
        labels: int64 (rows,).
        log_counts: log n_c, (classes,).
        hard: N_h, the number of hard classes, the label's included.
        distillation: factor of the mutual distillation.
    """
    logits = at_least_float32(logits)
    mask = hard_mask(logits[0], labels, hard)
    balanced = logits + log_counts
    loss = individual_loss(balanced, mask, labels)
    return loss if len(logits) == 1 else loss + distillation * nested_distillation(balanced, mask)


def ncl_plus_loss(
    logits: Tensor, labels: Tensor, log_counts: Tensor, hard: int, distillation: float, copies: int
) -> Tensor:
    """NCL++'s loss for each image, (images,): distillation between experts, and between each expert's copies.

    Args:
        logits: raw (experts, copies · images, classes); copy 0 of all images comes first, then copy 1, …
        labels: int64 (images,).
        log_counts, hard, distillation: as for `ncl_loss`.
        copies: differently augmented views of each image.
    """
    logits = at_least_float32(logits)
    labels = labels.repeat(copies)
    mask = hard_mask(logits[0], labels, hard)
    balanced = logits + log_counts
    rows = individual_loss(balanced, mask, labels)
    if len(logits) > 1:
        rows = rows + distillation * partial_distillation(balanced, mask)
    # A mean over rows equals the mean of this over images.
    loss = rows.unflatten(0, (copies, -1)).mean(dim=0)
    mask_of_first = mask[: len(loss)]
    for expert in balanced:
        loss = loss + distillation * partial_distillation(expert.unflatten(0, (copies, -1)), mask_of_first)
    return loss


@dataclass(frozen=True)
class NCLOptions:
    """The experts and their loss.

    Args:
        experts: K; 1 disables distillation between experts.
        copies: views of each image per step; more than 1 is NCL++, published with 4 and two experts.
        hard_classes: N_h, hard classes including the label's; by default 0.3 of all, as published on most data sets.
        distillation: factor of the distillation terms.
        head: linear, or cosine (scaled, with a bias) as published at 224 pixels.
        cosine_scale: factor on the cosines.
        contrastive: add the contrastive branch, whose keys come from the second view of the data preset.
        contrast_dim: size of queries and keys.
        queue: keys of earlier images that each expert keeps as negatives.
        temperature: temperature of the contrastive softmax.
        momentum: EMA decay of the momentum encoders per step.
        copy_init: initialise momentum encoders as copies of the trained ones. The official code gives them their own
            random weights (pretrained backbones are equal anyway), and so did the published runs.
        ema_head: update the momentum projections from the trained ones. In the official code they keep their random
            initialisation, as in the published runs.
    """

    experts: int = 3
    copies: int = 1
    hard_classes: int | None = None
    distillation: float = 0.6
    head: Literal["linear", "cosine"] = "linear"
    cosine_scale: float = 16.0
    contrastive: bool = False
    contrast_dim: int = 64
    queue: int = 1024
    temperature: float = 0.2
    momentum: float = 0.999
    copy_init: bool = True
    ema_head: bool = True

    def __post_init__(self) -> None:
        if self.experts < 1 or self.copies < 1:
            raise ValueError(f"method: experts is {self.experts}, copies {self.copies}; expected at least 1 of each")
        if self.contrastive and self.copies > 1:
            raise ValueError("method: contrastive pairs one view of each image with one key; set copies to 1")
        if not self.temperature > 0 or not 0 <= self.momentum <= 1:
            raise ValueError(
                f"method: temperature is {self.temperature}, momentum {self.momentum}; expected above 0, and 0 to 1"
            )
        if not 0 <= self.distillation < math.inf:
            raise ValueError(f"method.distillation is {self.distillation}, expected a finite number of at least 0")
        if not 0 < self.cosine_scale < math.inf:
            raise ValueError(f"method.cosine_scale is {self.cosine_scale}, expected a finite number above 0")
        if self.queue < 1 or self.contrast_dim < 1:
            raise ValueError(
                f"method: queue is {self.queue}, contrast_dim {self.contrast_dim}; expected at least 1 of each"
            )


class NCL(Objective):
    """Experts that learn together; the prediction is the mean of their raw logits.

    With the contrastive branch the network's output is (logits, contrastive logits, keys), otherwise only logits.
    """

    Options = NCLOptions
    drop_last = True
    without: ClassVar[Mapping[str, str]] = {
        "loss": "the balanced softmax is part of NCL's equations, including hard classes and distillation"
    }

    def __init__(self, options: NCLOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        counts = context.samples_per_class
        self.hard_classes = 3 * len(counts) // 10 if options.hard_classes is None else options.hard_classes
        if not 1 <= self.hard_classes <= len(counts):
            raise ValueError(f"method.hard_classes is {self.hard_classes}, expected 1 to {len(counts)} (all classes)")
        self.log_counts = log_counts(counts).to(context.device)
        self._keys: Tensor | None = None  # (experts, global batch, dim), this rank's rows of the step so far

    @property
    def copies(self) -> int:
        return self.options.copies

    def views(self) -> tuple[View | OneOf, ...]:
        if not self.options.contrastive:
            return super().views()
        return self.context.view, self.context.second_view or self.context.view

    def refuses(self) -> str | None:
        if self.options.contrastive and self.mixing.mixes:
            return "a mixed image is not a view of its key's image; set contrastive to false or do not mix"
        return None

    def check_batch_size(self, batch_size: int) -> None:
        if self.options.contrastive and batch_size > self.options.queue:
            raise ValueError(
                f"method.queue is {self.options.queue}, smaller than a batch of {batch_size} keys; make it larger"
            )

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        o, classes = self.options, self.classes

        def make_head(features: int) -> nn.Module:
            if o.head == "cosine":
                return BiasedCosineClassifier(features, classes, o.cosine_scale)
            return nn.Linear(features, classes)

        if o.contrastive:
            network: nn.Module = build_contrastive_experts(
                options,
                o.experts,
                make_head,
                seed,
                dim=o.contrast_dim,
                queue=o.queue,
                temperature=o.temperature,
                copy_init=o.copy_init,
            )
        else:
            network = build_experts(options, o.experts, make_head, seed)
        return with_synchronised_batch_norm(network, self.context.device)

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        folder = "classifier_ce" if self.options.contrastive else "classifier"
        return tuple(f"{folder}.{expert}" for expert in range(self.options.experts))

    def trainable(self, parameter_name: str) -> bool:
        return not parameter_name.startswith(("backbone_MA.", "classifier_MA."))

    # ------------------------------------------------------------------ a step

    def step_inputs(self, plan: MicroPlan) -> StepInputs:
        return {"positions": plan.positions} if self.options.contrastive else {}

    def forward(self, model: nn.Module, images: Tensor, step: MicroStep) -> Any:
        if not self.options.contrastive:
            return model(images)
        output = model(images, self.context.input_builder.plain(step.batches["original"].images[1]))
        self._remember(step, output[2])
        return output

    def row_losses(self, output: Any, labels: Tensor) -> Tensor:
        o = self.options
        arguments = (self._logits(output), labels, self.log_counts, self.hard_classes, o.distillation)
        return ncl_loss(*arguments) if o.copies == 1 else ncl_plus_loss(*arguments, o.copies)

    def extra(self, step: MicroStep, output: Any) -> Tensor | None:
        """How well each query matches its own key among those in the queue, as a share like that of a labelled term."""
        if not self.options.contrastive:
            return None
        _, contrast, _ = output
        own_key = torch.zeros(contrast.shape[1], dtype=torch.int64, device=contrast.device)
        recognition = torch.stack([cross_entropy(expert, own_key) for expert in contrast]).sum(dim=0)
        return self.weighted(step, "original", recognition)

    def prediction(self, output: Any) -> Tensor:
        return self._logits(output).mean(dim=0)

    def _logits(self, output: Any) -> Tensor:
        """(experts, copies · rows, classes)."""
        return output[0] if self.options.contrastive else output

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        return model(images)

    # -------------------------------------------------------- contrastive branch

    def _remember(self, step: MicroStep, keys: Tensor) -> None:
        """Put a micro-batch's keys at its rows of the global batch; padding rows add nothing."""
        if self._keys is None:
            self._keys = keys.new_zeros(len(keys), step.global_batch_size, keys.shape[2])
        weights = step.batches["original"].weights
        self._keys.index_add_(1, step.values["positions"], keys * weights[:, None])

    def before_optimizer(self, model: nn.Module) -> None:
        """Queue the keys of all ranks; update the momentum encoders from the weights that made this step's queries."""
        if not self.options.contrastive:
            return
        assert isinstance(model, ContrastiveExperts) and self._keys is not None
        if dist.is_initialized():
            dist.all_reduce(self._keys)  # each row belongs to one rank: the sum is the global batch, on all ranks
        for queue, keys in zip(model.MOCO, self._keys, strict=True):
            assert isinstance(queue, KeyQueue)
            queue.enqueue(keys)
        self._keys = None
        model.follow(self.options.momentum, self.options.ema_head)

    def derived_options(self) -> dict[str, Any]:
        return {"hard_classes": self.hard_classes}
