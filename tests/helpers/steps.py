"""Micro-batches of a step without a loader, for tests of methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from pipeline.loader import Batch, MicroBatch
from pipeline.mix_rule import MixPlan
from pipeline.plan import GlobalBatch, StreamPlan, part_indices
from pipeline.transfer import values_to_device
from pipeline.views.presets import CIFAR_STATISTICS, WHOLE_32
from pipeline.views.view import PaddedCrop, View
from train.inputs.input_builder import InputBuilder
from train.methods.base import MethodContext, MicroPlan, MicroStep, StepOutput
from train.methods.method import Method
from train.methods.parts import Mixing, NoOptions, Objective
from train.methods.registry import find_method
from train.schedules import Schedule, ScheduleOptions

CPU = torch.device("cpu")


@dataclass(frozen=True)
class PlannedStep:
    """A micro-batch, and what is planned for it."""

    plan: MicroPlan
    batches: Mapping[str, Batch]

    def of(self, method: Method | Objective) -> MicroStep:
        """What the trainer hands to the loss of this method."""
        objective = method.objective if isinstance(method, Method) else method
        values = values_to_device(objective.values(self.plan), CPU)
        return MicroStep(self.batches, values, self.plan.global_size("original"))


def loss_of(method: Method | Objective, model: nn.Module, step: PlannedStep) -> StepOutput:
    """What the method makes of the step."""
    return method.loss(model, step.of(method))


def context(counts: Sequence[int], epochs: int = 200, lr: float = 0.1, **schedule: object) -> MethodContext:
    """What a run of CIFAR-like data tells its method."""
    return MethodContext(
        np.array(counts),
        View(PaddedCrop(32, padding=4), 0.5),
        WHOLE_32,
        Schedule(ScheduleOptions(**schedule), lr, epochs),  # type: ignore[arg-type]
        InputBuilder.create(CIFAR_STATISTICS, CPU),
        CPU,
    )


def make_method(name: str, context: MethodContext, **values: object) -> Method:
    """A method by name, with some of its options."""
    spec = find_method(name, values)
    return spec.make(spec.Options(**values), context)


Kind = TypeVar("Kind", bound=Objective)


def unmixed(kind: type[Kind], options: object, context: MethodContext) -> Kind:
    """An objective, or a whole method, without a mixing or a stage."""
    return kind(options, context, Mixing(NoOptions(), context))


def random_images(batch: int, views: int = 1, size: int = 32, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """uint8 (batch, size, size, 3), one tensor a view."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, size, size, 3)
    return tuple(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(views))


def micro_step(
    epoch: int,
    streams: Mapping[str, tuple[tuple[torch.Tensor, ...], Sequence[int]]],
    mix: MixPlan | None = None,
    part: int = 0,
    parts: int = 1,
) -> PlannedStep:
    """Part `part` of `parts` of a step whose global batches are given by stream: (images by view, labels)."""
    whole, batches = {}, {}
    for name, (images, labels) in streams.items():
        whole[name] = np.array(labels)
        rows, weights = part_indices(len(labels), part, parts)
        own = whole[name][rows]
        served = StreamPlan(rows, weights, rows, own, ())
        own_images = tuple(view[rows] for view in images)
        batches[name] = Batch(own_images, torch.from_numpy(own), torch.from_numpy(weights), served)
    positions = batches["original"].served.rows
    step = GlobalBatch(epoch, 0, {name: len(labels) for name, labels in whole.items()}, whole.__getitem__, 0)
    micro = MicroBatch(batches, mix and mix.take(positions), positions)
    return PlannedStep(MicroPlan.of(step, micro), batches)
