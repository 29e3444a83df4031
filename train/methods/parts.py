"""What a composed method is made of: a mixing, an objective and a stage.

A *mixing* says which streams are read and how their images and label shares are made. An *objective* says what the
network computes and what one labelled term costs. A *stage* says what is inherited and what is trained. Each is one
file of `mixings/`, `objectives/` or `stages/`, named like its file; `composed.py` puts three of them together.

Every part has `Options`, a frozen dataclass, and may name in `without` options that one would expect and why they do
not exist, which is shown to users who pass them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.mix_rule import MixRule
from pipeline.plan import Stream
from pipeline.views.view import OneOf, View
from train.methods.base import ClassVectors, MethodContext, MicroPlan, MicroStep, StepInputs
from train.models.build import ModelOptions

Shares = dict[str, np.ndarray | float]
"""By stream: the weight of its labels in the loss, one number or float64 (rows,)."""


class Mixing(ABC):
    """Which streams are read, when they mix, and what becomes of their images and labels."""

    Options: ClassVar[type]
    without: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any, context: MethodContext):
        self.options, self.context = options, context

    def derived_options(self) -> dict[str, Any]:
        """What follows from the options and the length of the run, to be printed and saved with it."""
        return {}

    @abstractmethod
    def streams(self, views: tuple[View | OneOf, ...]) -> tuple[Stream, ...]:
        """The streams to read, "original" first; `views` are the pictures of a sample that the objective needs."""

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


class Objective(ABC):
    """The heads of a network, what one labelled term costs, and how its output is read.

    Attributes:
        drop_last: leave out the short last batch of an epoch.
        accumulates: False where the micro-batches of a step cannot be run one after the other.
        not_captured_because: why a step cannot be captured as a CUDA graph, or None.
    """

    Options: ClassVar[type]
    without: ClassVar[Mapping[str, str]] = {}
    drop_last: ClassVar[bool] = False
    accumulates: ClassVar[bool] = True
    not_captured_because: ClassVar[str | None] = None

    def __init__(self, options: Any, context: MethodContext):
        self.options, self.context = options, context

    def derived_options(self) -> dict[str, Any]:
        """What follows from the options and the length of the run, to be printed and saved with it."""
        return {}

    @property
    def copies(self) -> int:
        """Pictures per sample that are classified."""
        return 1

    def views(self) -> tuple[View | OneOf, ...]:
        """The pictures of a sample that a step needs; those that are classified come first."""
        return (self.context.view,) * self.copies

    def refuses(self, mixing: Mixing) -> str | None:
        """Why this objective cannot be trained under a mixing, or None."""
        return None

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse, with a ValueError, a global batch that the objective cannot take."""

    @abstractmethod
    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        """The network, with the heads that the objective needs."""

    @abstractmethod
    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        """Dotted names of the classifiers in the network: what a second stage trains."""

    def trainable(self, parameter_name: str) -> bool:
        """Whether gradients train a parameter; momentum encoders, for example, follow otherwise."""
        return True

    @abstractmethod
    def term_inputs(self, plan: MicroPlan, stream: str, share: np.ndarray | float) -> StepInputs:
        """What `term` has to know of a stream; `share` is the weight of its labels."""

    def step_inputs(self, plan: MicroPlan) -> StepInputs:
        """What else the loss has to know of a step."""
        return {}

    def forward(self, model: nn.Module, images: Tensor, step: MicroStep) -> Any:
        """The network's outputs for one batch; `term`, `extra` and `prediction` read them."""
        return model(images)

    @abstractmethod
    def term(self, step: MicroStep, stream: str, output: Any) -> Tensor:
        """This micro-batch's part of sum_i share_i c_i L(z_i, y_i), y the labels of a stream, c of the global batch."""

    def extra(self, step: MicroStep, output: Any) -> Tensor | None:
        """This micro-batch's part of a loss that has no label, or None."""
        return None

    def prediction(self, output: Any) -> Tensor:
        """Logits that rank the classes, (copies · rows, classes), from what `forward` returned."""
        return output

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits of each member of an ensemble, (members, batch, classes)."""
        return model(images)[None]

    def eval_logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits that an evaluation ranks, (batch, classes)."""
        return self.eval_members(model, images).mean(dim=0)

    def before_optimizer(self, model: nn.Module) -> None:
        """After the backward pass of a step, before its optimizer step."""

    def after_epoch(self, epoch: int) -> None:
        """After the last optimizer step of an epoch, before its evaluation."""

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept between steps beside the model."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take `state_dict` back."""


class Stage:
    """What a run inherits from another, what it trains and how its epochs end; by default nothing, all, and at once."""

    Options: ClassVar[type]
    without: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any, context: MethodContext):
        self.options, self.context = options, context

    def derived_options(self) -> dict[str, Any]:
        """What follows from the options and the length of the run, to be printed and saved with it."""
        return {}

    def check(self, options: ModelOptions) -> None:
        """Refuse, with a ValueError, model options that the stage cannot start from; before a network is built."""

    def refuses(self, mixing: Mixing, objective: Objective) -> str | None:
        """Why the stage cannot follow a mixing and an objective, or None."""
        return None

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> nn.Module:
        """The network to train, from the objective's; `heads` are the names of its classifiers."""
        return model

    def trainable(self, parameter_name: str) -> bool:
        """Whether a parameter is trained."""
        return True

    def inherits(self, parameter_name: str) -> bool:
        """Whether a parameter or buffer is taken from `model.init_from`."""
        return True

    def requires(self, parameter_name: str) -> bool:
        """Whether `model.init_from` must have a parameter that is inherited."""
        return False

    def stores(self, name: str) -> bool:
        """Whether a checkpoint has to hold a tensor of the state dict, where a file holds the weights started from."""
        return True

    def rate_factor(self, parameter_name: str) -> float:
        """Factor on a parameter's learning rate."""
        return 1.0

    def starts_from(self) -> ClassVectors | None:
        """The class vectors that the classifier starts from; None for random weights."""
        return None

    def start(self, model: nn.Module, vectors: Tensor, known: Tensor) -> None:
        """Let the classifier begin with vectors (classes, features), where known, bool (classes,)."""

    def trained_alone(self) -> str | None:
        """Dotted name of a module that is trained on the cached features of the rest; None for the whole network."""
        return None

    def set_mode(self, model: nn.Module) -> None:
        """Before each forward pass: parts that stay in evaluation mode."""

    def before_optimizer(self, model: nn.Module) -> None:
        """After the backward pass of a step, before its optimizer step."""

    def project(self, model: nn.Module) -> None:
        """Put weights back within their bounds, after an epoch."""

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept between steps beside the model."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take `state_dict` back."""


Part = Mixing | Objective | Stage
