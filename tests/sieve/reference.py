"""The sieve in plain numpy: what the kernel and the device version are held to."""

import numpy as np
from numpy.typing import NDArray

from gradsieve.sieve.cpu import exact_moments
from gradsieve.sieve.moments import Moments

Floats = NDArray[np.float32]


def sieve_reference(
    gradient: Floats, residual: Floats, threshold: float
) -> tuple[NDArray[np.int32], Floats, Floats, Moments]:
    """Indices, values, the new residual and the moments; nothing is changed in place."""
    limit = np.full(gradient.shape, threshold, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        accumulated = gradient + residual
    finite = np.isfinite(accumulated)
    passed = (np.abs(accumulated) > limit) | ~finite
    left = np.where(finite, np.where(passed, np.float32(0), accumulated), residual)
    indices = np.flatnonzero(passed).astype(np.int32)
    values = accumulated[indices]
    nonfinite = int((~finite).sum())
    with np.errstate(over="ignore", invalid="ignore"):
        squares = float(np.square(gradient.astype(np.float64)).sum())
    return indices, values, left, exact_moments(values, left, nonfinite, squares)
