"""Pictures, tables and reports of numbers that are safe already: one that fails is a warning, never a failed run."""

import logging
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)


def decorate(path: Path, make: Callable[[], object]) -> None:
    """Make what `path` is to hold."""
    try:
        make()
    except Exception as error:  # fonts, class names, full disks, a plotting library that does not start …
        logger.warning("%s could not be made; the numbers are safe: %s: %s", path, type(error).__name__, error)
