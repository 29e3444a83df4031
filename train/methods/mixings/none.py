"""Plain training: every image once per epoch, as it is."""

from dataclasses import dataclass

from pipeline.plan import Stream
from pipeline.sampling import Shuffled
from pipeline.views.view import OneOf, View
from train.methods.parts import Mixing


@dataclass(frozen=True)
class NoneOptions:
    """Nothing to choose."""


class NoMixing(Mixing):
    """One shuffled stream."""

    Options = NoneOptions

    def streams(self, views: tuple[View | OneOf, ...]) -> tuple[Stream, ...]:
        return (Stream("original", Shuffled(), views),)
