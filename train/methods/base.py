"""What a method is told: of its run, of what is planned for a step, and of the step itself.

A method never draws a random number and, unless an equation asks for sums over the batch (MetaSAug), never talks to
other ranks: the plan holds every decision. What a loss has to know of it, `values` computes on the host; `loss` sees
tensors only, so that a whole step can be captured once and replayed with the next step's values (step_graphs.py). It
returns this micro-batch's share of the loss of the *global* batch: shares add up over ranks and micro-batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.loader import Batch, MicroBatch
from pipeline.mix_rule import MixPlan
from pipeline.plan import GlobalBatch
from pipeline.views.view import OneOf, View
from train.inputs.input_builder import InputBuilder
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


@dataclass(frozen=True)
class MicroStep:
    """One rank's micro-batch on the device: all that a loss computes with.

    Args:
        batches: the images, by stream; a stream that this step does not need is absent.
        values: what `Objective.values` returned for it; floating point is float32.
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
