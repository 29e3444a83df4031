"""Plain training: every image once per epoch, without mixing."""

from train.methods.parts import Mixing, NoOptions


class NoMixing(Mixing):
    """One shuffled stream."""

    Options = NoOptions
