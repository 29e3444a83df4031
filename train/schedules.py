"""The learning rate of an epoch, as pure functions of the zero-based epoch.

The rate is constant within an epoch and not scaled with the batch size, as in the published CMO code. There is no
scheduler object: nothing has to be saved, and a resumed run computes its rate from the epoch number.
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

    CMO's schedules S1-S3 (CIFAR, ImageNet-LT, iNat18) warm up over epochs 0 … warmup_epochs-1. S4 (CIFAR, 400 epochs)
    extends the ramp by one epoch (`warmup_overshoots`), so epoch 10 trains at 1.1 times the base rate: odd, but needed
    to reproduce the published numbers. NCL's ramp starts at a third of the base rate (`warmup_start`).
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
    is the plain `(1 + cos(pi e / E)) / 2` of GLMC's CIFAR runs; its ImageNet-LT and iNat18 runs extend the ramp by one
    epoch (`warmup_overshoots`). NCL counts epochs from one (`ends_at_zero`): its last epoch has factor 0, and none
    has 1.
    """
    if epoch < warmup_epochs or (warmup_overshoots and epoch == warmup_epochs):
        return (epoch + 1) / warmup_epochs
    start, end = (warmup_epochs - 1, epochs - 1) if ends_at_zero else (max(warmup_epochs - 1, 0), epochs)
    return 0.5 * (1 + math.cos(math.pi * (epoch - start) / (end - start)))


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate schedule.

    Args:
        kind: "steps" (warm-up, then a factor after each milestone) or "cosine" (warm-up, then half a cosine).
        for_epochs: the run length that milestones and phase starts (deferred re-weighting) refer to; a different
            `epochs` rescales them in proportion. Warm-up and the paste window do not change.
        milestones: zero-based epochs at which the factor changes (steps only).
        factors: factors on the base rate, one per milestone, effective from that milestone (steps only).
        warmup_epochs: length of the linear ramp.
        warmup_overshoots: extend the ramp by one epoch, as in CMO's 400-epoch CIFAR schedule and GLMC's 224-pixel one:
            its last epoch trains above the base rate.
        late: every epoch uses the rate of the epoch before, and the first the base rate, as in code that updates the
            rate after an epoch (GLMC on ImageNet-LT and iNat18, whose first epoch thus precedes the warm-up).
        warmup_start: factor at which the ramp starts (steps only); NCL uses 1/3.
        final_lr: final rate of the cosine; NCL uses 1e-4.
        per: epoch keeps the rate constant within an epoch; step updates ramp and cosine (no other kind) every step,
            with the cosine from the end of the ramp to the end of the run.
        ends_at_zero: let the cosine end in the last epoch, as in NCL, instead of one epoch later.
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
                "schedule.per step requires schedule.kind cosine, without late, warmup_overshoots and ends_at_zero"
            )
        if self.for_epochs < 1:
            raise ValueError(f"schedule.for_epochs is {self.for_epochs}, expected at least 1")
        if len(self.milestones) != len(self.factors):
            raise ValueError(
                f"schedule: {len(self.milestones)} milestones, {len(self.factors)} factors; give one factor per "
                "milestone"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"schedule.milestones {list(self.milestones)} must increase")


@dataclass(frozen=True)
class Schedule:
    """A schedule rescaled to the length of a run; every derived epoch number is an attribute, so it can be printed."""

    options: ScheduleOptions
    base_lr: float
    epochs: int

    def rescaled(self, epoch: int) -> int:
        """The epoch of this run that corresponds to `epoch` of a run of `options.for_epochs`."""
        return round(epoch * self.epochs / self.options.for_epochs)

    @property
    def milestones(self) -> tuple[int, ...]:
        """Milestones, in epochs of this run."""
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
