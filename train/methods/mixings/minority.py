"""Alternatives to pasting for making minority samples (Park et al., CVPR 2022, table 12).

The streams, the paste coin and its window are CMO's; only the input of mixing steps differs. The official code has none
of these variants and the strengths are not published: blur and jitter are those of the "-long" presets here.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from pipeline.mix_rule import MixPlan, MixRule
from pipeline.views.operations import ColorJitter, GaussianBlur, Operation
from pipeline.views.view import OneOf, View
from train.methods.base import MicroPlan, MicroStep
from train.methods.mixings.paste import PasteOptions
from train.methods.mixings.two_streams import TwoStreams

_OPERATIONS: dict[str, Operation] = {
    "blur": GaussianBlur(probability=1.0),
    "jitter": ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
}


@dataclass(frozen=True)
class MinorityOptions(PasteOptions):
    """How minority samples are made.

    Args:
        operation: blur or jitter (mixing steps train on weighted samples with this operation, without a background) or
            mixup (of a background and a weighted sample).
    """

    operation: Literal["blur", "jitter", "mixup"] = "mixup"


class Minority(TwoStreams):
    """CMO's streams without pasting."""

    Options = MinorityOptions

    def foreground_view(self, view: View | OneOf) -> View | OneOf:
        if self.options.operation == "mixup":
            return view
        operation = _OPERATIONS[self.options.operation]
        if isinstance(view, OneOf):
            first, second = (replace(branch, operations=(*branch.operations, operation)) for branch in view.views)
            return OneOf((first, second))
        return replace(view, operations=(*view.operations, operation))

    def mix_rule(self) -> MixRule:
        return replace(super().mix_rule(), kind="mixup")

    def mixed(self, step: MicroStep, background: Tensor, foreground: Tensor, copies: int) -> Tensor:
        if self.options.operation != "mixup":
            return self.context.input_builder.plain(foreground)
        return super().mixed(step, background, foreground, copies)

    def background_share(self, plan: MicroPlan, mix: MixPlan) -> np.ndarray:
        return mix.lam if self.options.operation == "mixup" else np.zeros_like(mix.lam)
