"""Common parts of mixings of two images: an original stream, and a foreground that only mixing steps read."""

from typing import Any

import numpy as np
from torch import Tensor

from pipeline.mix_rule import MixPlan, MixRule
from pipeline.plan import Stream
from pipeline.sampling import Sampling, Shuffled
from pipeline.views.view import OneOf, View
from train.methods.base import MicroPlan, MicroStep, StepInputs
from train.methods.parts import Mixing, Shares, pictures


class TwoStreamOptions:
    """How a mixing's options determine its streams; by default both are shuffled."""

    def mix_rule(self) -> MixRule:
        """When and how a step mixes."""
        raise NotImplementedError

    def background_sampling(self, epochs: int) -> Sampling:
        """Sampling of the background, in a run of this many epochs; all steps use it."""
        return Shuffled()

    def foreground_sampling(self) -> Sampling:
        """Sampling of the foreground."""
        return Shuffled()


class TwoStreams(Mixing):
    """An original stream, and a foreground that is read only for steps that mix; by default they are blended."""

    def streams(self, views: tuple[View | OneOf, ...]) -> tuple[Stream, ...]:
        original = Stream("original", self.options.background_sampling(self.context.schedule.epochs), views)
        if not self.mixes:
            return (original,)
        foreground = tuple(self.foreground_view(view) for view in views)
        return original, Stream("foreground", self.options.foreground_sampling(), foreground, when="mixing")

    def mix_rule(self) -> MixRule:
        return self.options.mix_rule()

    def foreground_view(self, view: View | OneOf) -> View | OneOf:
        """The view of foreground images, given the original's `view`."""
        return view

    def shares(self, plan: MicroPlan) -> Shares:
        if plan.mix is None or not plan.mix.paste:
            return super().shares(plan)
        share = self.background_share(plan, plan.mix)
        return {"original": share, "foreground": 1 - share}

    def background_share(self, plan: MicroPlan, mix: MixPlan) -> np.ndarray:
        """Weight of the background's label, float64 (rows,); the foreground's label has the rest."""
        return mix.lam

    def inputs(self, plan: MicroPlan) -> StepInputs:
        if plan.mix is None or not plan.mix.paste:
            return {}
        return {"boxes": plan.mix.boxes, "lam": plan.mix.lam}

    def images(self, step: MicroStep, copies: int) -> Tensor:
        if "foreground" not in step.batches:
            return super().images(step, copies)
        return self.mixed(step, pictures(step, "original", copies), pictures(step, "foreground", copies), copies)

    def mixed(self, step: MicroStep, background: Tensor, foreground: Tensor, copies: int) -> Tensor:
        """The network's input on a step that mixes, here lam · background + (1 − lam) · foreground.

        Images are uint8 (copies · rows, height, width, 3).
        """
        return self.context.input_builder.mixup(background, foreground, step.values["lam"].repeat(copies))

    def derived_options(self) -> dict[str, Any]:
        if not self.mixes:
            return {}
        rule = self.mix_rule()
        first, end = rule.plain_first, self.context.schedule.epochs - rule.plain_last
        shown = f"{first + 1} to {end}" if first < end else "none: the run is shorter than its plain epochs"
        return {"mixing_epochs": shown}
