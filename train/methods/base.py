"""What a training method is: the streams it reads, its model, its loss, and the state it keeps.

Most methods are put together from three parts (parts.py, composed.py); some are whole (glmc.py, metasaug.py).

A method never draws a random number and, unless an equation asks for sums over the batch (MetaSAug), never talks to
other ranks: the plan holds every decision. What a loss has to know of it, `values` computes on the host; `loss` sees
tensors only, so that a whole step can be captured once and replayed with the next step's values (step_graphs.py). It
returns this micro-batch's share of the loss of the *global* batch: shares add up over ranks and micro-batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.loader import Batch, MicroBatch
from pipeline.mix_rule import MixPlan, MixRule
from pipeline.plan import GlobalBatch, Stream
from pipeline.rng import RowDraws
from pipeline.views.view import OneOf, View
from train.inputs.input_builder import InputBuilder
from train.models.build import ModelOptions
from train.schedules import Schedule


@dataclass(frozen=True)
class MethodContext:
    """What a run tells its method.

    Args:
        samples_per_class: training counts (classes,).
        view: how training images are augmented.
        evaluation_view: how images are shown in an evaluation.
        schedule: the learning rates; `schedule.rescaled` fits phase starts to the length of the run.
        input_builder: from uint8 images to the network's input.
        device: where tensors live.
        second_view: how a second picture of a training image differs, for methods that show two; None: drawn alike.
    """

    samples_per_class: np.ndarray
    view: View | OneOf
    evaluation_view: View
    schedule: Schedule
    input_builder: InputBuilder
    device: torch.device
    second_view: View | OneOf | None = None


@dataclass(frozen=True)
class ClassVectors:
    """What a classifier starts from: the vectors of a file, or else the mean features of training images.

    Args:
        per_class: at most so many images of a class.
        file: .npz of class vectors.
    """

    per_class: int
    file: Path | None = None


StepInputs = dict[str, np.ndarray]
"""By name: what a loss has to know of a step besides its images and labels."""


def key(stream: str, name: str) -> str:
    """The name of an input that belongs to one stream, the same where it is made and where it is read."""
    return f"{stream}_{name}"


@dataclass(frozen=True)
class MicroPlan:
    """What is planned for one rank's micro-batch of an optimizer step; all of it on the host.

    Args:
        step: sizes and labels of the whole step, all ranks and micro-batches.
        positions: int64 (rows,), the rows of the global batch that this micro-batch holds.
        mix: how these rows are mixed; None for a method without a mix rule.
        own_labels: by stream, int64 (rows,), of this micro-batch.
    """

    step: GlobalBatch
    positions: np.ndarray
    mix: MixPlan | None
    own_labels: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, step: GlobalBatch, micro: MicroBatch) -> "MicroPlan":
        """What is planned for a loaded micro-batch."""
        own_labels = {name: batch.served.labels for name, batch in micro.batches.items()}
        return cls(step, micro.positions, micro.mix, own_labels)

    def global_labels(self, stream: str) -> np.ndarray:
        """int64 (global batch,), of all ranks and micro-batches: for denominators. Drawing them is the dear part of a
        plan where there are many ranks: ask only where labels weigh, and take `global_size` otherwise.
        """
        return self.step.labels(stream)

    def global_size(self, stream: str) -> int:
        """Samples of all ranks and micro-batches."""
        return self.step.sizes[stream]

    def labels(self, stream: str) -> np.ndarray:
        """int64 (rows,), of this micro-batch."""
        return self.own_labels[stream]

    def uniform(self, purpose: str, numbers: int) -> np.ndarray:
        """Numbers in [0, 1), float64 (rows, numbers): the plan's draws for a decision that is the method's own."""
        draws = RowDraws(self.step.seed, self.step.epoch, self.step.step, self.positions)
        return draws.uniform(f"method/{purpose}", (len(self.positions), numbers))


@dataclass(frozen=True)
class MicroStep:
    """One rank's micro-batch on the device: all that a loss computes with.

    Args:
        batches: the images, by stream; a stream that this step does not need is absent.
        values: what `Method.values` returned for it; floating point is float32.
        global_batch_size: samples of the step, all ranks and micro-batches.
    """

    batches: Mapping[str, Batch]
    values: Mapping[str, Tensor]
    global_batch_size: int


@dataclass(frozen=True)
class StepOutput:
    """loss: scalar, this micro-batch's share; logits (rows, classes): for the training accuracy."""

    loss: Tensor
    logits: Tensor


ReadClasses = Callable[[np.ndarray], Iterator[tuple[Tensor, Tensor]]]
"""From class ids to batches of their training images, as an evaluation shows them: the network's input, labels (rows,).

Each process gets its own part of them."""


class Method(ABC):
    """A training method. Subclasses set `Options`, a frozen dataclass that recipe and command line fill."""

    Options: ClassVar[type]
    surveys: bool = False  # whether `streams` needs `survey` first, or the state of a checkpoint
    drop_last: bool = False
    accumulates: bool = True  # False: a step's micro-batches cannot be run one after the other
    # Why a step of the method cannot be captured once and replayed, or None: then the kind of step is decided by
    # which batches and values there are, and neither `loss` nor `before_optimizer` keeps anything on the host.
    not_captured_because: str | None = None
    # Options of other methods that one may expect here, and why they do not exist; shown to users who pass them.
    without: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any, context: MethodContext):
        self.options = options
        self.context = context

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse, with a ValueError, a global batch that the method cannot take; before anything is built."""

    @abstractmethod
    def streams(self) -> tuple[Stream, ...]:
        """The streams to read. The one named "original" carries the labels of the training accuracy."""

    def mix_rule(self) -> MixRule | None:
        """When and how two streams are mixed; None where the method does not mix."""
        return None

    @abstractmethod
    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        """The network, with the heads that the method needs."""

    @abstractmethod
    def values(self, plan: MicroPlan) -> StepInputs:
        """What `loss` has to know of a micro-batch: coefficients of its rows, boxes, numbers of its epoch."""

    @abstractmethod
    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        """Forward pass and this micro-batch's share of the loss."""

    def trainable(self, parameter_name: str) -> bool:
        """Whether a parameter of the model is trained; by default all are. Frozen ones stay out of the optimizer."""
        return True

    def inherits(self, parameter_name: str) -> bool:
        """Whether a parameter or buffer is taken from `model.init_from`; by default all are."""
        return True

    def requires(self, parameter_name: str) -> bool:
        """Whether `model.init_from` must have a parameter that is inherited: what the method goes on with.

        By default none; one that is absent keeps its random weights, and is listed. Names are those of the state dict.
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

    def survey(self, model: nn.Module, read: ReadClasses) -> None:
        """Look at training images once, before the plan is made; what comes of it is part of `state_dict`.

        A run that goes on from a checkpoint gets its state instead. `model` is the network that the run starts from.
        """

    def before_optimizer(self, model: nn.Module) -> None:
        """After the backward pass of a step, before its optimizer step; `model` is unwrapped (EMA, statistics)."""

    def project(self, model: nn.Module) -> None:
        """Put weights back within their bounds, after the last optimizer step of an epoch and before its evaluation.

        `model` is the unwrapped network; where an average of its weights is kept, the averaged one comes next.
        """

    def after_epoch(self, epoch: int) -> None:
        """After the last optimizer step of an epoch, before its evaluation (log lines)."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the method keeps between steps beside the model's own parameters and buffers; part of a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take `state_dict` back."""

    def eval_logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits that an evaluation ranks, (batch, classes), from assembled images."""
        return model(images)

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits of each member of an ensemble, (members, batch, classes); `eval_logits` is their mean."""
        return self.eval_logits(model, images)[None]

    def derived_options(self) -> dict[str, Any]:
        """What follows from the options and the length of the run, to be printed and saved with it."""
        return {}
