"""Read survivors of a payload into arrays, or add them to the averaged bucket."""

import numpy as np

from gradsieve.codec.add import add_at
from gradsieve.codec.blocks import even_edges
from gradsieve.codec.lanes import TILE, tile_sum
from gradsieve.codec.positions import behind_last, read_some, start_reading
from gradsieve.codec.settings import read_block
from gradsieve.runtime.compiled import compiled

GOOD, BAD_BLOCKS, BAD_PLANES, BAD_VALUES, BAD_POSITIONS, BAD_GRID = range(6)
"""Which part of a payload a reader has found damaged, in PARTS in words; GOOD for none."""
PARTS = (
    "",
    "counts of blocks",
    "planes of levels",
    "values",
    "positions",
    "classes of rows and columns",
)
CHUNK = 2048
"""The survivors that are decoded before they are added. They fit the L1 cache."""


@compiled
def ascend(indices, numel):  # type: ignore[no-untyped-def]
    """Return whether indices (int32 [N], 1 or more) ascend strictly within 0 .. numel - 1."""
    ends = indices[0] >= 0 and indices[-1] < numel
    falls = np.int32(0)
    for i in range(1, indices.size):
        falls += np.int32(indices[i] <= indices[i - 1])
    return ends and not falls


@compiled
def add_survivors(payload, address, universe, counts, values, factor, total):  # type: ignore[no-untyped-def]
    """Compute total[positions] += factor · values. Each chunk is checked before it is added.

    payload: uint8; address: where the positions begin, which the payload ends with; counts: int32,
    the survivors in each block; values: float32 [survivors]; factor: float32; total: float32
    [universe].

    Returns:
        GOOD or BAD_POSITIONS.
    """
    end = payload.ctypes.data + payload.size
    block, _ = read_block(payload.ctypes.data)
    edges = even_edges(universe, block)
    state = start_reading(address, edges, counts)
    indices = np.empty(CHUNK, np.int32)
    for start in range(0, values.size, CHUNK):
        some = values[start : start + CHUNK]
        if not read_some(state, address, end, edges, counts, indices[: some.size]):
            return BAD_POSITIONS
        add_at(total, indices[: some.size], some, factor)
    return GOOD if behind_last(state) == end else BAD_POSITIONS


@compiled
def read_survivors(payload, address, universe, counts, indices):  # type: ignore[no-untyped-def]
    """Write the positions to `indices`, int32 [survivors].

    The other arguments, and what is returned, are those of `add_survivors`.
    """
    end = payload.ctypes.data + payload.size
    block, _ = read_block(payload.ctypes.data)
    edges = even_edges(universe, block)
    state = start_reading(address, edges, counts)
    if not read_some(state, address, end, edges, counts, indices):
        return BAD_POSITIONS
    return GOOD if behind_last(state) == end else BAD_POSITIONS


@compiled
def settle(indices, values, sent, residual):  # type: ignore[no-untyped-def]
    """Write the error, values - sent, to the residual at `indices`; return its sum of squares.

    indices: int32 [N]; values and sent: float32 [N]; residual: float32 [numel].
    """
    for i in range(indices.size):
        residual[indices[i]] = values[i] - sent[i]
    return squared_distance(values, sent)


@compiled
def squared_distance(left, right):  # type: ignore[no-untyped-def]
    """Return the sum of squares of left - right, both float32 [N], as float64."""
    total = 0.0
    squares = np.empty(TILE, np.float32)
    for start in range(0, left.size, TILE):
        some, others = left[start : start + TILE], right[start : start + TILE]
        for i in range(some.size):
            difference = some[i] - others[i]
            squares[i] = difference * difference
        total += tile_sum(squares, some.size)
    return total
