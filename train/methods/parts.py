"""What a method is made of: a mixing, an objective and a stage.

A *mixing* says which streams are read and how their images and label shares are made. An *objective* says what the
network computes, what one labelled term costs and how its output is read. A *stage* says what is inherited and what is
trained. Each is one file of `mixings/`, `objectives/` or `stages/`, named like its file; `method.py` puts three of them
together. An objective that has streams of its own is a whole method, in a file of this folder (glmc.py).

Every part has `Options`, a frozen dataclass, and may name in `without` options that one would expect and why they do
not exist, which is shown to users who pass them.
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
from train.methods.base import ClassVectors, MethodContext, MicroPlan, MicroStep, StepInputs, StepOutput, key
from train.models.build import ModelOptions, build_model, classifier_name

Shares = dict[str, np.ndarray | float]
"""By stream: the weight of its labels in the loss, one number or float64 (rows,)."""


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose."""


class Mixing:
    """Which streams are read, when they mix, and what becomes of their images and labels; by default one stream."""

    Options: ClassVar[type] = NoOptions
    without: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any, context: MethodContext):
        self.options, self.context = options, context

    def derived_options(self) -> dict[str, Any]:
        """What follows from the options and the length of the run, to be printed and saved with it."""
        return {}

    def streams(self, views: tuple[View | OneOf, ...]) -> tuple[Stream, ...]:
        """The streams to read, "original" first; `views` are the pictures of a sample that the objective needs."""
        return (Stream("original", Shuffled(), views),)

    def mix_rule(self) -> MixRule | None:
        """When and how two streams are mixed; None where nothing is."""
        return None

    @property
    def mixes(self) -> bool:
        """Whether any step of a run trains on images of two labels."""
        rule = self.mix_rule()
        return rule is not None and rule.probability > 0

    def shares(self, plan: MicroPlan) -> Shares:
        """The labelled terms of a step: every stream in it, and how much its labels weigh."""
        return {"original": 1.0}

    def inputs(self, plan: MicroPlan) -> StepInputs:
        """What `images` has to know of a step."""
        return {}

    def images(self, step: MicroStep, copies: int) -> Tensor:
        """The network's input, (copies · rows, 3, height, width): copy 0 of all rows first, then copy 1, …"""
        return self.context.input_builder.plain(pictures(step, "original", copies))


def pictures(step: MicroStep, stream: str, copies: int) -> Tensor:
    """The first `copies` pictures of each row of a stream, uint8 (copies · rows, height, width, 3)."""
    images = step.batches[stream].images
    return images[0] if copies == 1 else torch.cat(images[:copies])


class Stage:
    """What a run inherits from another, what it trains and how fast; by default nothing has to be there, and all is.

    Attributes:
        heads: dotted names of the network's classifiers, once `prepare` was called.
    """

    Options: ClassVar[type] = NoOptions
    without: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any, context: MethodContext):
        self.options, self.context = options, context
        self.heads: tuple[str, ...] = ()

    def derived_options(self) -> dict[str, Any]:
        """What follows from the options and the network, to be printed and saved with the run."""
        return {}

    def check(self, options: ModelOptions) -> None:
        """Refuse, with a ValueError, model options that the stage cannot start from; before a network is built."""

    def refuses(self, mixing: Mixing, objective: "Objective") -> str | None:
        """Why the stage cannot follow a mixing and an objective, or None."""
        return None

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> None:
        """Change the objective's network, in place, into the one to train; `heads` are the names of its classifiers."""
        self.heads = heads

    def in_heads(self, parameter_name: str) -> bool:
        """Whether a parameter belongs to a classifier."""
        return parameter_name.startswith(tuple(f"{head}." for head in self.heads))

    def trainable(self, parameter_name: str) -> bool:
        """Whether a parameter is trained. Frozen ones stay out of the optimizer."""
        return True

    def inherits(self, parameter_name: str) -> bool:
        """Whether a parameter or buffer is taken from `model.init_from`; names are those of the state dict."""
        return True

    def requires(self, parameter_name: str) -> bool:
        """Whether `model.init_from` must have a parameter that is inherited: what the stage goes on with.

        One that is absent otherwise keeps its random weights, and is listed.
        """
        return False

    def stores(self, name: str) -> bool:
        """Whether a checkpoint has to hold a tensor of the state dict, where a file holds the weights started from."""
        return True

    def rate_factor(self, parameter_name: str) -> float:
        """Factor on a parameter's learning rate."""
        return 1.0

    def starts_from(self) -> ClassVectors | None:
        """The class vectors that the classifier starts from, which `start` is then given; None for random weights."""
        return None

    def start(self, model: nn.Module, vectors: Tensor, known: Tensor) -> None:
        """Let the classifier begin with vectors (classes, features), where known, bool (classes,)."""

    def trained_alone(self) -> str | None:
        """Dotted name of a module that is trained on the cached features of the rest; None for the whole network."""
        return None

    def set_mode(self, model: nn.Module) -> None:
        """Before each forward pass, as the trainer sets training mode: parts that stay in evaluation mode."""


class Objective:
    """The network, its loss and its predictions; by default one classifier under the loss of `criterion`.

    The hooks of a labelled term (`term_inputs` to `prediction`) serve the default `values` and `loss`, which take any
    mixing. A whole method has `streams`, `values` and `loss` of its own.

    Attributes:
        criterion: loss and class weights of a labelled term; cross entropy, unless an objective sets another.
        own_stage: the stage of a whole method, for which none can be chosen; None for an objective to be combined.
        drop_last: leave out the short last batch of an epoch.
        accumulates: False where the micro-batches of a step cannot be run one after the other.
        not_captured_because: why a step cannot be captured once and replayed, or None: then the kind of step is decided
            by which batches and values there are, and neither `loss` nor `before_optimizer` keeps anything on the host.
    """

    Options: ClassVar[type]
    without: ClassVar[Mapping[str, str]] = {}
    own_stage: ClassVar[type[Stage] | None] = None
    drop_last: bool = False
    accumulates: bool = True
    not_captured_because: str | None = None

    def __init__(self, options: Any, context: MethodContext, mixing: Mixing):
        self.options, self.context, self.mixing = options, context, mixing
        self.criterion = Criterion("ce", "none", context.samples_per_class, 0, context.device)

    def derived_options(self) -> dict[str, Any]:
        """What follows from the options and the length of the run, to be printed and saved with it."""
        return {}

    # ------------------------------------------------------------------- a run

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.context.samples_per_class)

    @property
    def copies(self) -> int:
        """Pictures per sample that are classified."""
        return 1

    def views(self) -> tuple[View | OneOf, ...]:
        """The pictures of a sample that a step needs; those that are classified come first."""
        return (self.context.view,) * self.copies

    def refuses(self) -> str | None:
        """Why this objective cannot be trained under its mixing, or None."""
        return None

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse, with a ValueError, a global batch that the objective cannot take; before anything is built."""

    def streams(self) -> tuple[Stream, ...]:
        """The streams to read. The one named "original" carries the labels of the training accuracy."""
        return self.mixing.streams(self.views())

    def mix_rule(self) -> MixRule | None:
        """When and how two streams are mixed; None where nothing is."""
        return self.mixing.mix_rule()

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        """The network, with the heads that the objective needs."""
        return build_model(options, self.classes, self.criterion.head, seed)

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        """Dotted names of the classifiers in the network: what a second stage trains."""
        return (classifier_name(model),)

    def trainable(self, parameter_name: str) -> bool:
        """Whether gradients train a parameter; momentum encoders, for example, follow otherwise."""
        return True

    # ------------------------------------------------------------------ a step

    def values(self, plan: MicroPlan) -> StepInputs:
        """What `loss` has to know of a micro-batch: coefficients of its rows, boxes, numbers of its epoch."""
        values = {**self.mixing.inputs(plan), **self.step_inputs(plan)}
        for stream, share in self.mixing.shares(plan).items():
            values |= self.term_inputs(plan, stream, share)
        return values

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        """Forward pass and this micro-batch's share of the loss of the global batch."""
        output = self.forward(model, self.mixing.images(step, self.copies), step)
        # The same order however a step was put together: sums of gradients round by it.
        streams = sorted(step.batches, key=lambda stream: (stream != "original", stream))
        first, *others = (self.term(step, stream, output) for stream in streams)
        loss = sum(others, start=first)
        extra = self.extra(step, output)
        rows = len(step.batches["original"].labels)  # the first copies
        return StepOutput(loss if extra is None else loss + extra, self.prediction(output)[:rows])

    def step_inputs(self, plan: MicroPlan) -> StepInputs:
        """What else the loss has to know of a step."""
        return {}

    def term_inputs(self, plan: MicroPlan, stream: str, share: np.ndarray | float) -> StepInputs:
        """What `term` has to know of a stream; `share` is the weight of its labels."""
        return {key(stream, "coefficients"): share * self.coefficients(plan, stream)}

    def coefficients(self, plan: MicroPlan, stream: str) -> np.ndarray:
        """c of each row of this micro-batch in sum_i share_i c_i L(z_i, y_i) over the global batch, float64 (rows,)."""
        epoch = plan.step.epoch
        if not self.criterion.weighs_classes(epoch):  # then no label of another rank is needed
            return np.full(len(plan.positions), 1 / plan.global_size(stream))
        return self.criterion.coefficients(epoch, plan.global_labels(stream))[plan.positions]

    def forward(self, model: nn.Module, images: Tensor, step: MicroStep) -> Any:
        """The network's outputs for one batch; `term`, `extra` and `prediction` read them."""
        return model(images)

    def term(self, step: MicroStep, stream: str, output: Any) -> Tensor:
        """This micro-batch's part of sum_i share_i c_i L(z_i, y_i), y the labels of a stream."""
        return self.weighted(step, stream, self.row_losses(output, step.batches[stream].labels))

    def row_losses(self, output: Any, labels: Tensor) -> Tensor:
        """L(z_i, y_i) of each row, (rows,); labels int64 (rows,)."""
        return self.criterion.per_sample(self.prediction(output), labels)

    @staticmethod
    def weighted(step: MicroStep, stream: str, rows: Tensor) -> Tensor:
        """This micro-batch's part of a term, from the loss of each of its rows; padding has weight 0."""
        return (step.values[key(stream, "coefficients")] * step.batches[stream].weights * rows).sum()

    def extra(self, step: MicroStep, output: Any) -> Tensor | None:
        """This micro-batch's part of a loss that has no label, or None."""
        return None

    def prediction(self, output: Any) -> Tensor:
        """Logits that rank the classes, (copies · rows, classes), from what `forward` returned."""
        return output

    def before_optimizer(self, model: nn.Module) -> None:
        """After the backward pass of a step, before its optimizer step; `model` is unwrapped (EMA, statistics)."""

    # ---------------------------------------------- after an epoch, and at rest

    def project(self, model: nn.Module) -> None:
        """Put weights back within their bounds, after the last optimizer step of an epoch and before its evaluation.

        `model` is the unwrapped network; where an average of its weights is kept, the averaged one comes next.
        """

    def after_epoch(self, epoch: int) -> None:
        """After the last optimizer step of an epoch, before its evaluation (log lines)."""

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept between steps beside the model's own parameters and buffers; part of a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take `state_dict` back."""

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits of each member of an ensemble, (members, batch, classes), from assembled images."""
        return self.prediction(model(images))[None]

    def eval_logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits that an evaluation ranks, (batch, classes)."""
        return self.eval_members(model, images).mean(dim=0)


Part = Mixing | Objective | Stage
