"""The pseudo-random arrays of the published test vectors."""

from collections.abc import Sequence

import numpy as np


def wave(
    function: str, shape: Sequence[int], factors: Sequence[float], offset: float = 0.0, scale: float = 1.0
) -> np.ndarray:
    """scale · f(offset + Σ_k factors_k · i_k) at each index i, f "sin" or "cos"; float64."""
    grid = np.indices(shape, dtype=np.float64)
    argument = offset + np.tensordot(np.asarray(factors, dtype=np.float64), grid, axes=1)
    return scale * (np.sin(argument) if function == "sin" else np.cos(argument))
