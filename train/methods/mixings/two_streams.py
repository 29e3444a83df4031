"""What all mixings of two images share: an original stream, and a foreground that only mixing steps read."""

from abc import abstractmethod
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.mix_rule import MixPlan
from pipeline.plan import Stream
from pipeline.sampling import Sampling, Shuffled
from pipeline.views.view import OneOf, View
from train.methods.base import MicroPlan, MicroStep, StepInputs
from train.methods.parts import Mixing, Shares, pictures


class TwoStreams(Mixing):
    """An original stream, and a foreground that is read only for the steps that mix."""

    def streams(self, views: tuple[View | OneOf, ...]) -> tuple[Stream, ...]:
        original = Stream("original", self.background(), views)
        if not self.mixes:
            return (original,)
        foreground = tuple(self.foreground_view(view) for view in views)
        return original, Stream("foreground", self.foreground(), foreground, when="mixing")

    def background(self) -> Sampling:
        """Which samples are mixed into; all steps see them."""
        return Shuffled()

    def foreground(self) -> Sampling:
        """Which samples are mixed in."""
        return Shuffled()

    def foreground_view(self, view: View | OneOf) -> View | OneOf:
        """How a picture of the foreground is made, where the original's is `view`."""
        return view

    def shares(self, plan: MicroPlan) -> Shares:
        if plan.mix is None or not plan.mix.paste:
            return super().shares(plan)
        share = self.background_share(plan, plan.mix)
        return {"original": share, "foreground": 1 - share}

    def background_share(self, plan: MicroPlan, mix: MixPlan) -> np.ndarray:
        """Weight of the background's label, float64 (rows,); the foreground's has the rest."""
        return mix.lam

    def inputs(self, plan: MicroPlan) -> StepInputs:
        if plan.mix is None or not plan.mix.paste:
            return {}
        return {"boxes": plan.mix.boxes, "lam": plan.mix.lam}

    def images(self, step: MicroStep, copies: int) -> Tensor:
        if "foreground" not in step.batches:
            return super().images(step, copies)
        return self.mixed(step, pictures(step, "original", copies), pictures(step, "foreground", copies), copies)

    def blended(self, step: MicroStep, background: Tensor, foreground: Tensor, copies: int) -> Tensor:
        """lam · background + (1 − lam) · foreground, normalised."""
        return self.context.input_builder.mixup(background, foreground, step.values["lam"].repeat(copies))

    @abstractmethod
    def mixed(self, step: MicroStep, background: Tensor, foreground: Tensor, copies: int) -> Tensor:
        """The network's input on a step that mixes; images uint8 (copies · rows, height, width, 3)."""

    def derived_options(self) -> dict[str, Any]:
        rule = self.mix_rule()
        if rule is None or not self.mixes:
            return {}
        first, end = rule.plain_first, self.context.schedule.epochs - rule.plain_last
        shown = f"{first + 1} to {end}" if first < end else "none: the run is shorter than its plain epochs"
        return {"mixing_epochs": shown}
