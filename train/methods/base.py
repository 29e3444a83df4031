"""The inputs of a method: its run, the plan of a step, and the step itself.

A method never draws a random number and, unless an equation needs sums over the batch (MetaSAug), never communicates
with other ranks: the plan has every decision. `values` computes on the host what a loss needs from the plan; `loss`
only sees tensors, so a whole step can be captured once and replayed with the next step's values (step_graphs.py). It
returns this micro-batch's share of the *global* batch's loss: shares add up over ranks and micro-batches.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.loader import Batch, MicroBatch
from pipeline.mix_rule import MixPlan
from pipeline.plan import GlobalBatch
from pipeline.rng import RowDraws
from pipeline.views.view import OneOf, View
from train.inputs.input_builder import InputBuilder
from train.schedules import Schedule


@dataclass(frozen=True)
class MethodContext:
    """The information that a run gives its method.

    Args:
        samples_per_class: training counts (classes,).
        view: the augmentation of training images.
        evaluation_view: the view for evaluation.
        schedule: the learning rates; `schedule.rescaled` adapts phase starts to the length of the run.
        input_builder: from uint8 images to the network's input.
        device: the device of tensors.
        second_view: the second view of a training image, for methods that use two; None: the same as the first.
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
    """The initial vectors of a classifier: from a file, or else the mean features of training images.

    Args:
        per_class: maximum number of images per class.
        file: .npz of class vectors.
    """

    per_class: int
    file: Path | None = None


ReadClasses = Callable[[np.ndarray], Iterator[tuple[Tensor, Tensor]]]
"""From class ids to batches of their training images, as an evaluation shows them: the network's input, labels (rows,).

Each process gets its own part of them."""

StepInputs = dict[str, np.ndarray]
"""By name: what a loss needs to know about a step besides its images and labels."""


def key(stream: str, name: str) -> str:
    """The name of an input that belongs to one stream, used where it is made and where it is read."""
    return f"{stream}_{name}"


@dataclass(frozen=True)
class MicroPlan:
    """The plan for one rank's micro-batch of an optimizer step, on the host.

    Args:
        step: sizes and labels of the whole step, all ranks and micro-batches.
        positions: int64 (rows,), this micro-batch's rows of the global batch.
        mix: how these rows are mixed; None for a method without a mix rule.
        own_labels: by stream, int64 (rows,), of this micro-batch.
    """

    step: GlobalBatch
    positions: np.ndarray
    mix: MixPlan | None
    own_labels: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, step: GlobalBatch, micro: MicroBatch) -> "MicroPlan":
        """The plan of a loaded micro-batch."""
        own_labels = {name: batch.served.labels for name, batch in micro.batches.items()}
        return cls(step, micro.positions, micro.mix, own_labels)

    def global_labels(self, stream: str) -> np.ndarray:
        """int64 (global batch,), over all ranks and micro-batches, for denominators. Drawing them is the expensive part
        of a plan with many ranks: call this only if labels have weights, and use `global_size` otherwise.
        """
        return self.step.labels(stream)

    def global_size(self, stream: str) -> int:
        """Samples of all ranks and micro-batches."""
        return self.step.sizes[stream]

    def labels(self, stream: str) -> np.ndarray:
        """int64 (rows,), for this micro-batch."""
        return self.own_labels[stream]

    def uniform(self, purpose: str, numbers: int) -> np.ndarray:
        """Numbers in [0, 1), float64 (rows, numbers): the plan's draws for a decision that is the method's own."""
        draws = RowDraws(self.step.seed, self.step.epoch, self.step.step, self.positions)
        return draws.uniform(f"method/{purpose}", (len(self.positions), numbers))


@dataclass(frozen=True)
class MicroStep:
    """One rank's micro-batch on the device: all inputs of a loss.

    Args:
        batches: the images by stream; streams that this step does not need are absent.
        values: the result of `Objective.values` for it; floats are float32.
        global_batch_size: samples in the step, over all ranks and micro-batches.
    """

    batches: Mapping[str, Batch]
    values: Mapping[str, Tensor]
    global_batch_size: int


@dataclass(frozen=True)
class StepOutput:
    """loss: scalar, this micro-batch's share; logits (rows, classes): for the training accuracy."""

    loss: Tensor
    logits: Tensor
