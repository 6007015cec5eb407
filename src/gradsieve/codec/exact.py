"""A parameter's survivors with values of fixed size: the payload, written and read."""

import numpy as np

from gradsieve.codec.blocks import (
    choose_blocks,
    read_counts,
    set_room,
    write_counts,
    write_settings,
)
from gradsieve.codec.positions import write_positions
from gradsieve.codec.survivors import BAD_BLOCKS, BAD_VALUES, GOOD
from gradsieve.compiled import compiled


@compiled
def encode_exact(indices, raw, numel, smallest_block, threshold):  # type: ignore[no-untyped-def]
    """Write a section's payload (uint8).

    indices: int32 [N], ascending below numel; raw: uint8, the bytes of the values; threshold:
    float32.
    """
    block, counts = choose_blocks(indices, numel, smallest_block)
    payload = np.empty(set_room(numel, block, counts) + raw.size + 32, np.uint8)
    start = payload.ctypes.data
    address = write_counts(counts, write_settings(block, threshold, start))
    payload[address - start : address - start + raw.size] = raw
    address = write_positions(indices, numel, block, counts, address + raw.size)
    return payload[: address - start]


@compiled
def open_exact(address, end, count, numel, block, value_bytes):  # type: ignore[no-untyped-def]
    """What makes no sense, the blocks' counts, the addresses of the values and the positions."""
    counts, at = read_counts(address, end, numel, block, count)
    if at == 0:
        return BAD_BLOCKS, counts, at, at
    behind = at + count * value_bytes
    return (GOOD if behind <= end else BAD_VALUES), counts, at, behind
