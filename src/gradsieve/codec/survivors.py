"""Survivors out of a payload: into arrays, or straight into the averaged bucket."""

import numpy as np

from gradsieve.codec.add import add_at
from gradsieve.codec.lanes import TILE, tile_sum
from gradsieve.codec.positions import behind_last, read_some, start_reading
from gradsieve.codec.settings import read_block
from gradsieve.compiled import compiled

GOOD, BAD_BLOCKS, BAD_PLANES, BAD_VALUES, BAD_POSITIONS = range(5)
"""What a reader found; PARTS says it in words."""
PARTS = ("", "counts of blocks", "planes of levels", "values", "positions")
CHUNK = 2048
"""Survivors that are decoded before they are added; they stay in the L1 cache."""


@compiled
def ascend(indices, numel):  # type: ignore[no-untyped-def]
    """Whether indices (int32 [N], 1 or more) ascend strictly within 0 .. numel - 1."""
    ends = indices[0] >= 0 and indices[-1] < numel
    falls = np.int32(0)
    for i in range(1, indices.size):
        falls += np.int32(indices[i] <= indices[i - 1])
    return ends and not falls


@compiled
def add_survivors(payload, address, universe, counts, values, factor, total):  # type: ignore[no-untyped-def]
    """total[positions] += factor · values; each chunk is checked before it is added.

    address: of the positions, which are the last in the payload.
    """
    end = payload.ctypes.data + payload.size
    block, _ = read_block(payload.ctypes.data)
    state = start_reading(address, universe, block, counts)
    indices = np.empty(CHUNK, np.int32)
    for start in range(0, values.size, CHUNK):
        some = values[start : start + CHUNK]
        if not read_some(state, address, end, universe, block, counts, indices[: some.size]):
            return BAD_POSITIONS
        add_at(total, indices[: some.size], some, factor)
    return GOOD if behind_last(state) == end else BAD_POSITIONS


@compiled
def read_survivors(payload, address, universe, counts, indices):  # type: ignore[no-untyped-def]
    """Write the positions to indices (int32 [survivors])."""
    end = payload.ctypes.data + payload.size
    block, _ = read_block(payload.ctypes.data)
    state = start_reading(address, universe, block, counts)
    if not read_some(state, address, end, universe, block, counts, indices):
        return BAD_POSITIONS
    return GOOD if behind_last(state) == end else BAD_POSITIONS


@compiled
def settle(indices, values, sent, residual):  # type: ignore[no-untyped-def]
    """Leave in the residual what a frame does not carry of the values; `sent` is what it does.

    Returns:
        The sum of squares of what is left.
    """
    for i in range(indices.size):
        residual[indices[i]] = values[i] - sent[i]
    return squared_distance(values, sent)


@compiled
def squared_distance(left, right):  # type: ignore[no-untyped-def]
    total = 0.0
    squares = np.empty(TILE, np.float32)
    for start in range(0, left.size, TILE):
        some, others = left[start : start + TILE], right[start : start + TILE]
        for i in range(some.size):
            difference = some[i] - others[i]
            squares[i] = difference * difference
        total += tile_sum(squares, some.size)
    return total
