"""A parameter's survivors with values of fixed size: the payload, written and read."""

import numpy as np

from gradsieve.codec.blocks import choose_blocks, read_counts, set_room, write_counts
from gradsieve.codec.positions import write_positions
from gradsieve.codec.settings import SETTINGS_BYTES, read_block, write_settings
from gradsieve.codec.survivors import BAD_BLOCKS, BAD_VALUES, GOOD
from gradsieve.compiled import compiled


@compiled
def encode_exact(indices, raw, numel, smallest_block, threshold):  # type: ignore[no-untyped-def]
    """Write a section's payload (uint8).

    indices: int32 [N], ascending below numel; raw: uint8, the bytes of the values; threshold:
    float32.
    """
    block, counts = choose_blocks(indices, numel, smallest_block)
    room = SETTINGS_BYTES + set_room(numel, block, counts) + raw.size
    payload = np.empty(room, np.uint8)
    start = payload.ctypes.data
    address = write_counts(counts, write_settings(block, threshold, start))
    payload[address - start : address - start + raw.size] = raw
    address = write_positions(indices, numel, block, counts, address + raw.size)
    return payload[: address - start]


@compiled
def open_exact(payload, count, numel, value_bytes):  # type: ignore[no-untyped-def]
    """As `open_levels`, with the values' bytes."""
    start = payload.ctypes.data
    end = start + payload.size
    block, at = read_block(start)
    counts, at = read_counts(at, end, numel, block, count)
    if at == 0:
        return BAD_BLOCKS, counts, payload[:0], at
    behind = at + count * value_bytes
    if behind > end:
        return BAD_VALUES, counts, payload[:0], at
    return GOOD, counts, payload[at - start : behind - start], behind
