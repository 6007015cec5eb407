"""float32 rounded to its upper half."""

import numpy as np
from numpy.typing import NDArray

from gradsieve.runtime.arrays import FLOAT32, INT16, require_array
from gradsieve.runtime.compiled import compiled

SIGN, MAGNITUDE = np.uint32(0x8000), np.uint32(0x7FFFFFFF)
INFINITY, QUIET_NAN = np.uint32(0x7F800000), np.uint32(0x7FC0)
LARGEST = np.uint32(0x7F7F)
HALF = np.uint32(0x7FFF)
SHIFT = np.uint32(16)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.int16]:
    """float32 [N] to int16 [N]: the nearest, ties to even; what is finite stays finite.

    Raises:
        TypeError: another dtype.
        ValueError: other dimensions, or strides.
    """
    require_array("values", values, FLOAT32)
    halves: NDArray[np.int16] = round_to_halves(values)
    return halves


@compiled
def round_to_halves(values):  # type: ignore[no-untyped-def]
    halves = np.empty(values.size, np.int16)
    patterns, rounded = values.view(np.uint32), halves.view(np.uint16)
    for i in range(patterns.size):
        sign = (patterns[i] >> SHIFT) & SIGN
        magnitude = patterns[i] & MAGNITUDE
        if magnitude > INFINITY:
            upper = QUIET_NAN
        elif magnitude == INFINITY:
            upper = magnitude >> SHIFT
        else:
            odd = (magnitude >> SHIFT) & np.uint32(1)
            upper = min(LARGEST, (magnitude + HALF + odd) >> SHIFT)
        rounded[i] = sign | upper
    return halves


def from_bfloat16(halves: NDArray[np.int16]) -> NDArray[np.float32]:
    """int16 [N] to float32 [N], exactly; errors as of `to_bfloat16`."""
    require_array("halves", halves, INT16)
    values: NDArray[np.float32] = widen_halves(halves)
    return values


@compiled
def widen_halves(halves):  # type: ignore[no-untyped-def]
    values = np.empty(halves.size, np.float32)
    patterns, upper = values.view(np.uint32), halves.view(np.uint16)
    for i in range(upper.size):
        patterns[i] = np.uint32(upper[i]) << SHIFT
    return values
