"""Survivors as floats of a fixed width: the payload, written and read."""

from enum import IntEnum

import numpy as np

from gradsieve.codec.blocks import choose_blocks, even_edges, read_counts, set_room, write_counts
from gradsieve.codec.coding import Floats, Indices, Section
from gradsieve.codec.float_format import FloatFormat
from gradsieve.codec.positions import write_positions
from gradsieve.codec.pruned import BlockedCoding
from gradsieve.codec.settings import SETTINGS_BYTES, read_block, write_settings
from gradsieve.codec.survivors import BAD_BLOCKS, BAD_VALUES, GOOD, settle
from gradsieve.runtime.compiled import compiled


class PrunedFloats(BlockedCoding):
    """Each survivor's value in the given format, sign included."""

    may_be_empty = True

    def __init__(self, kind: IntEnum, floats: FloatFormat) -> None:
        super().__init__(kind, is_exact=floats.is_exact)
        self.floats = floats

    def encode(
        self,
        indices: Indices,
        values: Floats,
        numel: int,
        smallest_block: int,
        threshold: np.float32,
        residual: Floats | None,
    ) -> Section:
        raw, squared_remainder = self.floats.to_bytes(values), 0.0
        if residual is not None and not self.is_exact:
            squared_remainder = settle(indices, values, self.floats.from_bytes(raw), residual)
        payload = encode_floats(indices, raw, numel, smallest_block, threshold)
        return Section(numel, indices.size, self, payload, squared_remainder=squared_remainder)

    def read_values(self, section: Section) -> tuple[int, Indices, Floats, int]:
        damaged, counts, raw, at = open_floats(
            section.payload, section.count, section.numel, self.floats.width
        )
        return damaged, counts, self.floats.from_bytes(raw), at


@compiled
def encode_floats(indices, raw, numel, smallest_block, threshold):  # type: ignore[no-untyped-def]
    """Write a payload and return it, uint8.

    indices: int32 [N], ascending below numel; raw: uint8, the bytes of the values; threshold:
    float32.
    """
    block, counts = choose_blocks(indices, numel, smallest_block)
    edges = even_edges(numel, block)
    room = SETTINGS_BYTES + set_room(edges, counts) + raw.size
    payload = np.empty(room, np.uint8)
    start = payload.ctypes.data
    address = write_counts(counts, write_settings(block, threshold, start))
    payload[address - start : address - start + raw.size] = raw
    address = write_positions(indices, edges, counts, address + raw.size)
    return payload[: address - start]


@compiled
def open_floats(payload, count, numel, value_bytes):  # type: ignore[no-untyped-def]
    """Return what `BlockedCoding.read_values` does, with the values as bytes."""
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
