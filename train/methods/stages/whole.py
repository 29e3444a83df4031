"""The whole network, in one go."""

from dataclasses import dataclass

from train.methods.parts import Stage


@dataclass(frozen=True)
class WholeOptions:
    """Nothing to choose."""


class Whole(Stage):
    """Everything is trained; what `model.init_from` has is inherited."""

    Options = WholeOptions
