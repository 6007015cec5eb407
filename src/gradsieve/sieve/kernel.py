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
"""Elements that have a row of totals of their own, so that sums do not depend on the threads."""
ROW_BYTES = 8 * TOTALS


@compiled
def totals_row(totals, first, at):  # type: ignore[no-untyped-def]
    """The address of the row for element `at` where element `first` has the one at `totals`."""
    return totals + (at // UNIT - first // UNIT) * ROW_BYTES


@compiled
def sieve_blocks(  # type: ignore[no-untyped-def]
    gradient, residual, into, length, threshold, indices, values, first, totals, way
):
    """Sieve `length` elements, a multiple of BLOCK; returns the number of survivors.

    gradient, residual, into, indices, values, totals: addresses of float32 (three times), int32,
    float32 and float64; threshold: float32, not negative; first: the index of the first element;
    way: CLEAR and STREAM, added up. The new residual goes to `into`, which may be `residual`, up to
    PADDING elements behind the survivors are overwritten; `totals` has a row of TOTALS for each
    UNIT of the parameter from that of `first` on, which are added to. With CLEAR the gradient
    becomes 0; with STREAM `into` is aligned to STREAM_ALIGNMENT.
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
            way + dense,
        )
        survivors += count
        # Where one vector in five holds a survivor, a mispredicted branch for each costs more
        # than packing them all.
        dense = DENSE if count * 40 > size else 0
    if way & STREAM:
        wait_for_stores()
    return survivors


@compiled
def measure_blocks(gradient, residual, length, totals):  # type: ignore[no-untyped-def]
    """Add to `totals` what `sieve_blocks` would at threshold infinity, and change nothing else.

    gradient, totals: addresses as for `sieve_blocks`; residual: float32 [length] or None.
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
