"""Several numbers as one: mean and standard deviation in words."""

import statistics
from collections.abc import Sequence


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation of what is there, one decimal; a dash where nothing is, no spread for one value."""
    present = [value for value in values if value is not None]
    if not present:
        return "–"
    spread = f" ± {statistics.stdev(present):.1f}" if len(present) > 1 else ""
    return f"{statistics.mean(present):.1f}{spread}"
