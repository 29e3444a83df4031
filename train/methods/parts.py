"""The parts of a method: a mixing, an objective and a stage.

A *mixing* defines which streams are read and how their images and label shares are made. An *objective* defines the
network's computation, the loss of one labelled term and the reading of the output. A *stage* defines what is inherited
and what is trained. Each is one file in `mixings/`, `objectives/` or `stages/`, named like its file; `method.py`
combines three of them. An objective with its own streams is a whole method, in a file in this folder (glmc.py).

Every part has `Options`, a frozen dataclass, and may list in `without` options that users might expect and why they do
not exist; users who pass them see the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.mix_rule import MixRule
from pipeline.plan import Stream
from pipeline.sampling import Shuffled
from pipeline.views.view import OneOf, View
from train.losses.criterion import Criterion
from train.methods.base import (
    ClassVectors,
    MethodContext,
    MicroPlan,
    MicroStep,
    ReadClasses,
    StepInputs,
    StepOutput,
    key,
)
from train.models.build import ModelOptions, build_model, classifier_name

Shares = dict[str, np.ndarray | float]
"""By stream: the weight of its labels in the loss, a number or float64 (rows,)."""


@dataclass(frozen=True)
class NoOptions:
    """No options."""


class Mixing:
    """Which streams are read, when they mix, and how images and labels are combined; by default one stream."""

    Options: ClassVar[type] = NoOptions
    without: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any, context: MethodContext):
        self.options, self.context = options, context

    def derived_options(self) -> dict[str, Any]:
        """Values derived from the options and the length of the run, printed and saved with it."""
        return {}

    def streams(self, views: tuple[View | OneOf, ...]) -> tuple[Stream, ...]:
        """The streams to read, "original" first; `views` are the views of a sample that the objective needs."""
        return (Stream("original", Shuffled(), views),)

    def mix_rule(self) -> MixRule | None:
        """When and how two streams are mixed; None if they are not."""
        return None

    @property
    def mixes(self) -> bool:
        """Whether any step of a run trains on images with two labels."""
        rule = self.mix_rule()
        return rule is not None and rule.probability > 0

    def shares(self, plan: MicroPlan) -> Shares:
        """The labelled terms of a step: each of its streams, with the weight of its labels."""
        return {"original": 1.0}

    def inputs(self, plan: MicroPlan) -> StepInputs:
        """What `images` needs to know about a step."""
        return {}

    def images(self, step: MicroStep, copies: int) -> Tensor:
        """The network's input, (copies · rows, 3, height, width): copy 0 of all rows first, then copy 1, …"""
        return self.context.input_builder.plain(pictures(step, "original", copies))


def pictures(step: MicroStep, stream: str, copies: int) -> Tensor:
    """The first `copies` views of each row of a stream, uint8 (copies · rows, height, width, 3)."""
    images = step.batches[stream].images
    return images[0] if copies == 1 else torch.cat(images[:copies])


class Stage:
    """What a run inherits from another, what it trains and how fast; by default nothing is required and all is trained.

    Attributes:
        heads: dotted names of the network's classifiers, set by `prepare`.
    """

    Options: ClassVar[type] = NoOptions
    without: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any, context: MethodContext):
        self.options, self.context = options, context
        self.heads: tuple[str, ...] = ()

    def derived_options(self) -> dict[str, Any]:
        """Values derived from the options and the network, printed and saved with the run."""
        return {}

    def check(self, options: ModelOptions) -> None:
        """Refuse, with a ValueError, model options that the stage cannot start from, before a network is built."""

    def refuses(self, mixing: Mixing, objective: "Objective") -> str | None:
        """Why the stage cannot be combined with a mixing and an objective, or None."""
        return None

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> None:
        """Convert the objective's network, in place, into the one to train; `heads` are its classifiers' names."""
        self.heads = heads

    def in_heads(self, parameter_name: str) -> bool:
        """Whether a parameter belongs to a classifier."""
        return parameter_name.startswith(tuple(f"{head}." for head in self.heads))

    def trainable(self, parameter_name: str) -> bool:
        """Whether a parameter is trained. Frozen parameters are not in the optimizer."""
        return True

    def inherits(self, parameter_name: str) -> bool:
        """Whether a parameter or buffer is loaded from `model.init_from`; names are those of the state dict."""
        return True

    def requires(self, parameter_name: str) -> bool:
        """Whether `model.init_from` must contain an inherited parameter, because the stage continues from it.

        Other missing parameters keep their random weights and are listed.
        """
        return False

    def stores(self, name: str) -> bool:
        """Whether a checkpoint must store a tensor of the state dict, if a file has the initial weights."""
        return True

    def rate_factor(self, parameter_name: str) -> float:
        """Factor on a parameter's learning rate."""
        return 1.0

    def starts_from(self) -> ClassVectors | None:
        """The initial class vectors of the classifier, later passed to `start`; None for random weights."""
        return None

    def start(self, model: nn.Module, vectors: Tensor, known: Tensor) -> None:
        """Initialise the classifier with vectors (classes, features), for classes in known, bool (classes,)."""

    def trained_alone(self) -> str | None:
        """Dotted name of a module trained on cached features of the rest; None for the whole network."""
        return None

    def set_mode(self, model: nn.Module) -> None:
        """Called before each forward pass, when the trainer sets training mode: sets parts to evaluation mode."""


class Objective:
    """The network, its loss and its predictions; by default one classifier with the loss of `criterion`.

    The default `values` and `loss`, which support any mixing, use the hooks of a labelled term (`term_inputs` to
    `prediction`). A whole method overrides `streams`, `values` and `loss`.

    Attributes:
        criterion: loss and class weights of a labelled term; cross entropy unless an objective sets another.
        surveys: whether `streams` needs the result of `survey`, or of a checkpoint's state.
        own_stage: the stage of a whole method, which cannot be chosen; None for an objective that can be combined.
        drop_last: drop the short last batch of an epoch.
        accumulates: False if the micro-batches of a step cannot run one after another.
        not_captured_because: why a step cannot be captured and replayed. None means that it can: the kind of step is
            determined by its batches and values, and `loss` and `before_optimizer` keep no state on the host.
    """

    Options: ClassVar[type]
    without: ClassVar[Mapping[str, str]] = {}
    own_stage: ClassVar[type[Stage] | None] = None
    surveys: bool = False
    drop_last: bool = False
    accumulates: bool = True
    not_captured_because: str | None = None

    def __init__(self, options: Any, context: MethodContext, mixing: Mixing):
        self.options, self.context, self.mixing = options, context, mixing
        self.criterion = Criterion("ce", "none", context.samples_per_class, 0, context.device)

    def derived_options(self) -> dict[str, Any]:
        """Values derived from the options and the length of the run, printed and saved with it."""
        return {}

    # ------------------------------------------------------------------- a run

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.context.samples_per_class)

    @property
    def copies(self) -> int:
        """Classified views per sample."""
        return 1

    def views(self) -> tuple[View | OneOf, ...]:
        """The views of a sample that a step needs; classified ones first."""
        return (self.context.view,) * self.copies

    def refuses(self) -> str | None:
        """Why this objective cannot be trained with its mixing, or None."""
        return None

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse, with a ValueError, a global batch that the objective cannot use, before anything is built."""

    def streams(self) -> tuple[Stream, ...]:
        """The streams to read. The one named "original" carries the labels of the training accuracy."""
        return self.mixing.streams(self.views())

    def mix_rule(self) -> MixRule | None:
        """When and how two streams are mixed; None if they are not."""
        return self.mixing.mix_rule()

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        """The network with the heads that the objective needs."""
        return build_model(options, self.classes, self.criterion.head, seed)

    def survey(self, model: nn.Module, read: ReadClasses) -> None:
        """Read training images once, before the plan is made; the result is part of `state_dict`.

        A resumed run loads the checkpoint's state instead. `model` is the network that the run starts from.
        """

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        """Dotted names of the network's classifiers, which a second stage trains."""
        return (classifier_name(model),)

    def trainable(self, parameter_name: str) -> bool:
        """Whether gradients train a parameter; momentum encoders, for example, are updated differently."""
        return True

    # ------------------------------------------------------------------ a step

    def values(self, plan: MicroPlan) -> StepInputs:
        """What `loss` needs to know about a micro-batch: coefficients of its rows, boxes, values of its epoch."""
        values = {**self.mixing.inputs(plan), **self.step_inputs(plan)}
        for stream, share in self.mixing.shares(plan).items():
            values |= self.term_inputs(plan, stream, share)
        return values

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        """Forward pass and this micro-batch's share of the global batch's loss."""
        output = self.forward(model, self.mixing.images(step, self.copies), step)
        # A fixed order, independent of how the step was assembled: it affects the rounding of gradient sums.
        streams = sorted(step.batches, key=lambda stream: (stream != "original", stream))
        first, *others = (self.term(step, stream, output) for stream in streams)
        loss = sum(others, start=first)
        extra = self.extra(step, output)
        rows = len(step.batches["original"].labels)  # the first copies
        return StepOutput(loss if extra is None else loss + extra, self.prediction(output)[:rows])

    def step_inputs(self, plan: MicroPlan) -> StepInputs:
        """What else the loss needs to know about a step."""
        return {}

    def term_inputs(self, plan: MicroPlan, stream: str, share: np.ndarray | float) -> StepInputs:
        """What `term` needs to know about a stream; `share` is the weight of its labels."""
        return {key(stream, "coefficients"): share * self.coefficients(plan, stream)}

    def coefficients(self, plan: MicroPlan, stream: str) -> np.ndarray:
        """c for this micro-batch's rows, in sum_i share_i c_i L(z_i, y_i) over the global batch; float64 (rows,)."""
        epoch = plan.step.epoch
        if not self.criterion.weighs_classes(epoch):  # then no labels of other ranks are needed
            return np.full(len(plan.positions), 1 / plan.global_size(stream))
        return self.criterion.coefficients(epoch, plan.global_labels(stream))[plan.positions]

    def forward(self, model: nn.Module, images: Tensor, step: MicroStep) -> Any:
        """The network's outputs for one batch; `term`, `extra` and `prediction` read them."""
        return model(images)

    def term(self, step: MicroStep, stream: str, output: Any) -> Tensor:
        """This micro-batch's part of sum_i share_i c_i L(z_i, y_i), with y the labels of a stream."""
        return self.weighted(step, stream, self.row_losses(output, step.batches[stream].labels))

    def row_losses(self, output: Any, labels: Tensor) -> Tensor:
        """L(z_i, y_i) for each row, (rows,); labels int64 (rows,)."""
        return self.criterion.per_sample(self.prediction(output), labels)

    @staticmethod
    def weighted(step: MicroStep, stream: str, rows: Tensor) -> Tensor:
        """This micro-batch's part of a term, from the loss of each row; padding has weight 0."""
        return (step.values[key(stream, "coefficients")] * step.batches[stream].weights * rows).sum()

    def extra(self, step: MicroStep, output: Any) -> Tensor | None:
        """This micro-batch's part of a loss without labels, or None."""
        return None

    def prediction(self, output: Any) -> Tensor:
        """Logits that rank the classes, (copies · rows, classes), from the result of `forward`."""
        return output

    def before_optimizer(self, model: nn.Module) -> None:
        """Called after a step's backward pass, before its optimizer step; `model` is unwrapped (EMA, statistics)."""

    # ---------------------------------------------- after an epoch, and at rest

    def project(self, model: nn.Module) -> None:
        """Project weights back into their bounds, after the last optimizer step of an epoch and before its evaluation.

        `model` is the unwrapped network; if an average of the weights is kept, the averaged network follows.
        """

    def after_epoch(self, epoch: int) -> None:
        """Called after the last optimizer step of an epoch, before its evaluation (log lines)."""

    def state_dict(self) -> dict[str, Tensor]:
        """State between steps other than the model's parameters and buffers; part of a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the result of `state_dict`."""

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits of each ensemble member, (members, batch, classes), from assembled images."""
        return self.prediction(model(images))[None]

    def eval_logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits that an evaluation ranks, (batch, classes)."""
        return self.eval_members(model, images).mean(dim=0)


Part = Mixing | Objective | Stage
