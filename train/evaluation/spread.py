"""Several numbers as text: mean and standard deviation."""

import statistics
from collections.abc import Sequence


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation of the present values, one decimal; a dash if there is none, no spread for one."""
    present = [value for value in values if value is not None]
    if not present:
        return "–"
    spread = f" ± {statistics.stdev(present):.1f}" if len(present) > 1 else ""
    return f"{statistics.mean(present):.1f}{spread}"
