"""Parametric contrastive learning, PaCo (Cui et al., ICCV 2021), and GPaCo (TPAMI 2023).

Balanced softmax and supervised contrast share one softmax (`train.losses.paco`). Two views of an image give a query and
a key; a query is contrasted with the other queries, all keys and the queue. PaCo's keys come from a momentum copy of
the network, which is updated *before* they are computed, and only queries are anchors; GPaCo's come from the network
itself, with gradient, and are also anchors. The formulas are those of the released code.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from pipeline.views.view import OneOf, View
from train.losses.functions import at_least_float32
from train.losses.lade import log_with_epsilon
from train.losses.paco import parametric_contrast
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepInputs, key
from train.methods.parts import Mixing, Objective
from train.models.build import ModelOptions
from train.models.paco import PaCoNetwork, build_paco


@dataclass(frozen=True)
class PaCoOptions:
    """The contrastive part.

    Args:
        keys: momentum (from a momentum copy of the network, PaCo) or own (from the network itself, GPaCo).
        contrast_alpha: weight of a positive column relative to the sample's own class.
        contrast_temperature: temperature of the contrast columns; class columns have none.
        contrast_size: dimension of queries and keys.
        key_queue: number of keys of earlier images.
        key_momentum: EMA decay of the momentum copy per step.
        group: rows contrasted with each other; by default a micro-batch. The published runs at 224 pixels had 32 on
            each of four GPUs.
    """

    keys: Literal["momentum", "own"] = "momentum"
    contrast_alpha: float = 0.05
    contrast_temperature: float = 0.2
    contrast_size: int = 128
    key_queue: int = 8192
    key_momentum: float = 0.999
    group: int | None = None

    def __post_init__(self) -> None:
        if not self.contrast_temperature > 0 or not self.contrast_alpha >= 0 or not 0 <= self.key_momentum <= 1:
            raise ValueError(
                f"method: contrast_temperature is {self.contrast_temperature}, contrast_alpha {self.contrast_alpha}, "
                f"key_momentum {self.key_momentum}; expected above 0, at least 0, and 0 to 1"
            )
        if self.contrast_size < 1 or self.key_queue < 1 or (self.group is not None and self.group < 2):
            raise ValueError(
                f"method: contrast_size is {self.contrast_size}, key_queue {self.key_queue}, group {self.group}; "
                "expected at least 1, 1 and 2"
            )


class PaCo(Objective):
    """One network, its two views of a sample, and a queue of labelled keys."""

    Options = PaCoOptions
    drop_last = True

    def __init__(self, options: PaCoOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        counts = context.samples_per_class
        self.log_prior = log_with_epsilon(counts / counts.sum()).to(context.device)
        self._keys: Tensor | None = None  # (global batch, dim), this rank's rows of the step so far
        self._labels: Tensor | None = None  # (global batch,)

    def views(self) -> tuple[View | OneOf, ...]:
        return self.context.view, self.context.second_view or self.context.view

    def refuses(self) -> str | None:
        if self.mixing.mixes:
            return "a mixed image is not a view of its key's image; PaCo contrasts whole images"
        return None

    def check_batch_size(self, batch_size: int) -> None:
        o = self.options
        if batch_size > o.key_queue:
            raise ValueError(
                f"method.key_queue is {o.key_queue}, smaller than a batch of {batch_size} keys; make it larger"
            )
        if o.group is not None and batch_size % o.group:
            raise ValueError(f"batch_size is {batch_size}, not a multiple of method.group ({o.group} rows)")

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        o, momentum = self.options, self.options.keys == "momentum"
        return build_paco(options, self.classes, seed, dim=o.contrast_size, size=o.key_queue, momentum=momentum)

    def trainable(self, parameter_name: str) -> bool:
        return not parameter_name.startswith("encoder_k.")

    # ------------------------------------------------------------------ a step

    def step_inputs(self, plan: MicroPlan) -> StepInputs:
        return {"positions": plan.positions, "labels_of_step": plan.global_labels("original")}

    def coefficients(self, plan: MicroPlan, stream: str) -> np.ndarray:
        anchors = 1 if self.options.keys == "momentum" else 2  # per image
        return np.full(len(plan.positions), 1 / (anchors * plan.global_size(stream)))

    def forward(self, model: nn.Module, images: Tensor, step: MicroStep) -> tuple[Tensor, ...]:
        """Logits, queries, keys, and the queue as this step found it."""
        network = extract_model_from_parallel(model)
        if self._keys is None:  # the first micro-batch of the step: queries do not use the copy
            network.follow(self.options.key_momentum)
        output = model(images, self.context.input_builder.plain(step.batches["original"].images[1]))
        self._remember(step, output[2].detach())
        return *output, network.queue, network.queue_l

    def term(self, step: MicroStep, stream: str, output: tuple[Tensor, ...]) -> Tensor:
        """The mean over anchors; each group of rows has its own queries and keys among the columns."""
        batch, rows = step.batches[stream], len(step.batches[stream].labels)
        size = self.options.group or rows
        if rows % size:
            raise ValueError(
                f"a micro-batch has {rows} rows, not a multiple of method.group ({size}); change "
                "accumulation, batch_size or method.group"
            )
        shares = step.values[key(stream, "coefficients")] * batch.weights
        groups = [slice(start, start + size) for start in range(0, rows, size)]
        parts = [self._group(group, shares, batch.weights, batch.labels, *output) for group in groups]
        return torch.stack(parts).sum()

    def _group(
        self,
        group: slice,
        shares: Tensor,
        weights: Tensor,
        labels: Tensor,
        logits: Tensor,
        queries: Tensor,
        keys: Tensor,
        queue: Tensor,
        queue_labels: Tensor,
    ) -> Tensor:
        copies = len(logits) // len(labels)  # anchors per image
        with torch.autocast(logits.device.type, enabled=False):
            both = torch.cat([queries[group], keys[group]])
            own = labels[group].repeat(copies)
            rows = parametric_contrast(
                at_least_float32(logits).unflatten(0, (copies, -1))[:, group].flatten(0, 1) + self.log_prior,
                both[: len(own)],
                own,
                torch.cat([both, queue.to(both.dtype)]),
                torch.cat([labels[group].repeat(2), queue_labels]),
                torch.cat([weights[group].repeat(2) > 0, torch.ones_like(queue_labels, dtype=torch.bool)]),
                alpha=self.options.contrast_alpha,
                temperature=self.options.contrast_temperature,
            )
        return (shares[group].repeat(copies) * rows).sum()

    def prediction(self, output: tuple[Tensor, ...]) -> Tensor:
        return output[0]

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        return model(images)[None]

    def _remember(self, step: MicroStep, keys: Tensor) -> None:
        """Put a micro-batch's keys at its rows of the global batch; padding rows add nothing."""
        if self._keys is None:
            self._keys = keys.new_zeros(step.global_batch_size, keys.shape[1])
            self._labels = step.values["labels_of_step"]
        weights = step.batches["original"].weights
        self._keys.index_add_(0, step.values["positions"], keys * weights[:, None].to(keys.dtype))

    def before_optimizer(self, model: nn.Module) -> None:
        """Queue the keys of all ranks, in the order of the global batch."""
        assert isinstance(model, PaCoNetwork) and self._keys is not None and self._labels is not None
        if dist.is_initialized():
            dist.all_reduce(self._keys)  # each row belongs to one rank: the sum is the global batch, on all ranks
        model.enqueue(self._keys, self._labels)
        self._keys = self._labels = None
