"""The learning rate of an epoch, as pure functions of the zero-based epoch.

The rate is constant within an epoch and not scaled with the batch size, as in the published CMO code. There is no
scheduler object: nothing has to be saved, and a resumed run reads its rate from the epoch number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


def step_factor(
    epoch: int,
    milestones: Sequence[int],
    factors: Sequence[float],
    warmup_epochs: int,
    warmup_overshoots: bool = False,
    warmup_start: float = 0.0,
) -> float:
    """Factor on the base rate: linear warm-up, then `factors[k]` from `milestones[k]` on.

    Schedules S1-S3 of CMO (CIFAR, ImageNet-LT, iNat18) warm up over epochs 0 … warmup_epochs-1. S4 (CIFAR, 400 epochs)
    lets the ramp run one epoch longer (`warmup_overshoots`), so that epoch 10 trains at 1.1 times the base rate: odd,
    and needed to reproduce the published numbers. NCL's ramp begins at a third of the base rate (`warmup_start`).
    """
    if epoch < warmup_epochs or (warmup_overshoots and epoch == warmup_epochs):
        done = (epoch + 1) / warmup_epochs
        return warmup_start * (1 - done) + done
    return ([1.0] + [f for m, f in zip(milestones, factors, strict=True) if epoch >= m])[-1]


def cosine_factor(
    epoch: int, epochs: int, warmup_epochs: int, ends_at_zero: bool = False, warmup_overshoots: bool = False
) -> float:
    """Factor on the base rate: linear warm-up, then half a cosine.

    Schedule S5 of CMO (ImageNet-LT and iNat18, 400 epochs): with a warm-up of w epochs the cosine starts one epoch
    earlier than the ramp ends, `(1 + cos(pi (e - (w-1)) / (E - (w-1)))) / 2`, and never reaches zero. With w = 0 it
    is the plain `(1 + cos(pi e / E)) / 2` of GLMC's CIFAR runs; its ImageNet-LT and iNat18 runs let the ramp run one
    epoch longer (`warmup_overshoots`). NCL counts epochs from one (`ends_at_zero`): its last epoch has factor 0,
    and none has 1.
    """
    if epoch < warmup_epochs or (warmup_overshoots and epoch == warmup_epochs):
        return (epoch + 1) / warmup_epochs
    start, end = (warmup_epochs - 1, epochs - 1) if ends_at_zero else (max(warmup_epochs - 1, 0), epochs)
    return 0.5 * (1 + math.cos(math.pi * (epoch - start) / (end - start)))


@dataclass(frozen=True)
class ScheduleOptions:
    """How the learning rate depends on the epoch.

    Args:
        kind: "steps" (warm-up, then a factor from each milestone on) or "cosine" (warm-up, then half a cosine).
        for_epochs: the run length that milestones and phase starts (deferred re-weighting) are written for; another
            `epochs` rescales them in proportion. Warm-up and the paste window stay.
        milestones: zero-based epochs at which the factor changes (steps only).
        factors: factor on the base rate from the milestone of the same position on (steps only).
        warmup_epochs: length of the linear ramp.
        warmup_overshoots: let the ramp run one epoch longer, as CMO's 400-epoch CIFAR schedule and GLMC's 224-pixel one
            do: its last epoch trains above the base rate.
        late: every epoch trains with the rate of the epoch before, and the first with the base rate, as where the rate
            is updated after an epoch (GLMC on ImageNet-LT and iNat18, whose first epoch so precedes the warm-up).
        warmup_start: factor that the ramp rises from (steps only); NCL begins at 1/3.
        final_lr: rate that the cosine descends to; NCL's is 1e-4.
        per: epoch keeps a rate for an epoch; step lets ramp and cosine (no other kind) go on with every step, the
            cosine from the end of the ramp to the end of the run.
        ends_at_zero: let the cosine reach its end in the last epoch, as NCL's does, instead of one epoch later.
    """

    kind: Literal["steps", "cosine"] = "steps"
    for_epochs: int = 200
    milestones: tuple[int, ...] = (160, 180)
    factors: tuple[float, ...] = (0.01, 0.0001)
    warmup_epochs: int = 5
    warmup_overshoots: bool = False
    late: bool = False
    warmup_start: float = 0.0
    final_lr: float = 0.0
    ends_at_zero: bool = False
    per: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        if self.per == "step" and (self.kind != "cosine" or self.late or self.warmup_overshoots or self.ends_at_zero):
            raise ValueError(
                "schedule.per step goes with schedule.kind cosine, and without late, warmup_overshoots and ends_at_zero"
            )
        if self.for_epochs < 1:
            raise ValueError(f"schedule.for_epochs is {self.for_epochs}, expected at least 1")
        if len(self.milestones) != len(self.factors):
            raise ValueError(
                f"schedule: {len(self.milestones)} milestones, {len(self.factors)} factors; give one factor a milestone"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"schedule.milestones {list(self.milestones)} must increase")


@dataclass(frozen=True)
class Schedule:
    """A schedule fitted to the length of a run; every derived epoch number is an attribute, so it can be printed."""

    options: ScheduleOptions
    base_lr: float
    epochs: int

    def rescaled(self, epoch: int) -> int:
        """The epoch of this run that corresponds to `epoch` of a run of `options.for_epochs`."""
        return round(epoch * self.epochs / self.options.for_epochs)

    @property
    def milestones(self) -> tuple[int, ...]:
        """Milestones in epochs of this run."""
        return tuple(self.rescaled(m) for m in self.options.milestones)

    def lr(self, epoch: int) -> float:
        """Learning rate of a zero-based epoch."""
        o = self.options
        epoch -= o.late
        if epoch < 0:
            return self.base_lr
        if o.kind == "cosine":
            factor = cosine_factor(epoch, self.epochs, o.warmup_epochs, o.ends_at_zero, o.warmup_overshoots)
            return o.final_lr + (self.base_lr - o.final_lr) * factor
        return self.base_lr * step_factor(
            epoch, self.milestones, o.factors, o.warmup_epochs, o.warmup_overshoots, o.warmup_start
        )

    def lr_at(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, both zero-based."""
        o = self.options
        if o.per == "epoch":
            return self.lr(epoch)
        done, ramp = epoch * steps_per_epoch + step, o.warmup_epochs * steps_per_epoch
        if done < ramp:
            return self.base_lr * (done + 1) / ramp
        share = (done - ramp) / max(self.epochs * steps_per_epoch - ramp, 1)
        return o.final_lr + (self.base_lr - o.final_lr) * 0.5 * (1 + math.cos(math.pi * share))
