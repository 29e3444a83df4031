"""Figures, tables and reports of numbers that are already saved: a failure is a warning, never a failed run."""

import logging
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)


def decorate(path: Path, make: Callable[[], object]) -> None:
    """Write the content of `path`."""
    try:
        make()
    except Exception as error:  # fonts, class names, full disks, a plotting library that fails to load …
        logger.warning("%s could not be written; the numbers are saved: %s: %s", path, type(error).__name__, error)
