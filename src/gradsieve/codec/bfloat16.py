"""bfloat16: float32 rounded to its upper half."""

import numpy as np
from numpy.typing import NDArray

from gradsieve.codec.coding import Floats
from gradsieve.codec.float_format import FloatFormat
from gradsieve.runtime.arrays import FLOAT32, INT16, require_array
from gradsieve.runtime.compiled import compiled

STORED = np.dtype("<i2")
"""numpy has no bfloat16; its bits are kept as integers."""
SIGN, MAGNITUDE = np.uint32(0x8000), np.uint32(0x7FFFFFFF)
INFINITY, QUIET_NAN = np.uint32(0x7F800000), np.uint32(0x7FC0)
LARGEST = np.uint32(0x7F7F)
HALF = np.uint32(0x7FFF)
SHIFT = np.uint32(16)


class Bfloat16(FloatFormat):
    """The nearest bfloat16, 2 bytes each."""

    width = STORED.itemsize

    def to_bytes(self, values: Floats) -> NDArray[np.uint8]:
        return to_bfloat16(values).astype(STORED, copy=False).view(np.uint8)

    def from_bytes(self, raw: NDArray[np.uint8]) -> Floats:
        halves = raw.view(STORED)
        return from_bfloat16(halves.astype(np.int16, copy=not halves.flags.aligned))


def to_bfloat16(values: Floats) -> NDArray[np.int16]:
    """Round float32 [N] to the nearest bfloat16, ties to even, and return its bits, int16 [N].

    Finite values stay finite: those beyond the largest bfloat16 become the largest.

    Raises:
        TypeError: `values` is no array of float32.
        ValueError: `values` has several dimensions or is not contiguous.
    """
    require_array("values", values, FLOAT32)
    halves: NDArray[np.int16] = round_to_halves(values)
    return halves


@compiled
def round_to_halves(values):  # type: ignore[no-untyped-def]
    """Return the bits that `to_bfloat16` returns."""
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


def from_bfloat16(halves: NDArray[np.int16]) -> Floats:
    """Return the bits of bfloat16, int16 [N], as float32 [N], exactly.

    Raises:
        TypeError: `halves` is no array of int16.
        ValueError: `halves` has several dimensions or is not contiguous.
    """
    require_array("halves", halves, INT16)
    values: Floats = widen_halves(halves)
    return values


@compiled
def widen_halves(halves):  # type: ignore[no-untyped-def]
    """Return the values that `from_bfloat16` returns."""
    values = np.empty(halves.size, np.float32)
    patterns, upper = values.view(np.uint32), halves.view(np.uint16)
    for i in range(upper.size):
        patterns[i] = np.uint32(upper[i]) << SHIFT
    return values
