"""Readers of the original data sets, one file per layout."""

from tools.sources.base import SourceCommand
from tools.sources.cifar import CifarLT
from tools.sources.digits import DigitsLT
from tools.sources.imagefolder import ImageFolder
from tools.sources.imagenet_lt import ImageNetLT
from tools.sources.inat import INAT
from tools.sources.listed_images import PLACES_LT, ListedImages

SOURCES: dict[str, SourceCommand] = {
    "imagenet-lt": ImageNetLT(),
    **INAT,
    "places-lt": ListedImages(
        "places-lt", "Places-LT from an archive or folder of Places365, with its lists", PLACES_LT
    ),
    "list": ListedImages("list", "your own images, with a list of `path label` lines or NCL's JSON"),
    "cifar-lt": CifarLT(),
    "imagefolder": ImageFolder(),
    "digits-lt": DigitsLT(),
}
