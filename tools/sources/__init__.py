"""Readers of the original data sets, one file a layout."""

from tools.sources.base import SourceCommand
from tools.sources.digits import DigitsLT
from tools.sources.imagefolder import ImageFolder

SOURCES: dict[str, SourceCommand] = {
    "digits-lt": DigitsLT(),
    "imagefolder": ImageFolder(),
}
