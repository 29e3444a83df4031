"""RIDE under Remix: the experts and their loss (train/methods/ride.py) on relabelled mixtures (train/methods/remix.py).

"RIDE + Remix" of Park et al. (CVPR 2022, table 13). How the two were put together is not published; here the loss of
each of the two labels is RIDE's, weighted as Remix says, like RIDE + CMO.
"""

from dataclasses import dataclass

from train.methods.remix import RelabellingOptions, Remix
from train.methods.ride import RIDE, ExpertOptions


@dataclass(frozen=True)
class RIDERemixOptions(ExpertOptions, RelabellingOptions):
    """Experts and mixture; the fields are documented with their parts."""

    def __post_init__(self) -> None:
        ExpertOptions.__post_init__(self)
        RelabellingOptions.__post_init__(self)


class RIDERemix(Remix, RIDE):
    """Streams, mixture and label weights of Remix; model and loss of RIDE."""

    Options = RIDERemixOptions
