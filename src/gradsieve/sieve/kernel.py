"""The loops of the CPU kernel over whole blocks of a parameter."""

import numpy as np

from gradsieve.runtime.compiled import compiled
from gradsieve.sieve.tile import (
    DENSE,
    PADDING,
    STREAM,
    TILE,
    TOTALS,
    sieve_tile,
    wait_for_stores,
)

UNIT = 16 * TILE
"""The elements that share a row of totals. Sums of rows do not depend on the number of threads."""
ROW_BYTES = 8 * TOTALS


@compiled
def totals_row(totals, first, at):  # type: ignore[no-untyped-def]
    """Return the address of the row of element `at`, given that `totals` is that of `first`."""
    return totals + (at // UNIT - first // UNIT) * ROW_BYTES


@compiled
def sieve_blocks(  # type: ignore[no-untyped-def]
    gradient, residual, into, length, threshold, indices, values, first, totals, flags
):
    """Sieve `length` elements, a multiple of BLOCK, and return the number of survivors.

    All arrays are given by their addresses:
        gradient, residual: float32 [length]. With CLEAR the gradient becomes 0.
        into: float32 [length], where the new residual is written. It may be `residual`. With
            STREAM it is aligned to STREAM_ALIGNMENT.
        indices, values: int32 and float32, where survivors are written. Up to PADDING elements
            behind them are overwritten.
        totals: float64 [*, TOTALS], a row for each UNIT from that of `first` on, added to.

    threshold: float32, not negative. first: the index of the first element in the parameter.
    flags: the sum of CLEAR and STREAM, where wanted.
    """
    survivors = 0
    dense = 0
    for start in range(0, length, TILE):
        size = min(TILE, length - start)
        at = start * 4
        count = sieve_tile(
            gradient + at,
            residual + at,
            into + at,
            size,
            threshold,
            indices + survivors * 4,
            values + survivors * 4,
            first + start,
            totals_row(totals, first, first + start),
            flags + dense,
        )
        survivors += count
        # Once a vector in five holds a survivor, mispredicted branches cost more than packing all
        # vectors.
        dense = DENSE if count * 40 > size else 0
    if flags & STREAM:
        wait_for_stores()
    return survivors


@compiled
def measure_blocks(gradient, residual, length, totals):  # type: ignore[no-untyped-def]
    """Add to `totals` what `sieve_blocks` adds at a threshold of infinity; change nothing else.

    gradient, totals: addresses as for `sieve_blocks`; residual: float32 [length], or None for 0.
    """
    scratch = np.zeros(TILE, np.float32)
    indices = np.empty(PADDING + TILE, np.int32)
    values = np.empty(PADDING + TILE, np.float32)
    for start in range(0, length, TILE):
        size = min(TILE, length - start)
        if residual is None:
            scratch[:size] = 0
        else:
            scratch[:size] = residual[start : start + size]
        sieve_tile(
            gradient + start * 4,
            scratch.ctypes.data,
            scratch.ctypes.data,
            size,
            np.float32(np.inf),
            indices.ctypes.data,
            values.ctypes.data,
            start,
            totals_row(totals, 0, start),
            0,
        )
