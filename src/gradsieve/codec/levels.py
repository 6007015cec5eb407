"""A parameter's survivors as levels: the payload of a section, written and read."""

import math

import numpy as np

from gradsieve.codec.bits import load_word, sign_bits, store_byte
from gradsieve.codec.blocks import choose_blocks, read_counts, set_room, write_counts
from gradsieve.codec.planes import (
    PLANES,
    first_plane,
    low_bits_for,
    planes_room,
    read_low_bits,
    read_planes,
    write_low_bits,
    write_planes,
)
from gradsieve.codec.positions import write_positions, write_rest
from gradsieve.codec.quantizer import TILE, choose_step, quantize, reconstruct
from gradsieve.codec.survivors import BAD_BLOCKS, BAD_PLANES, BAD_VALUES, GOOD
from gradsieve.compiled import compiled, compiled_with_free_order

UINT = np.uint64
SIGN = np.uint32(0x80000000)


@compiled
def write_signs(values, address):  # type: ignore[no-untyped-def]
    """values: float32 [N]; writes a bit each, 1 for negative."""
    source = values.ctypes.data
    whole = values.size // 8 * 8
    for i in range(0, whole, 8):
        store_byte(address, sign_bits(source + 4 * i))
        address += 1
    word = UINT(0)
    for i in range(whole, values.size):
        word |= UINT(np.signbit(values[i])) << UINT(i - whole)
    return write_rest(address, word, values.size - whole)


@compiled
def apply_signs(address, bits):  # type: ignore[no-untyped-def]
    for start in range(0, bits.size, 64):
        word = load_word(address + start // 8)
        for i in range(start, min(start + 64, bits.size)):
            bits[i] |= np.uint32((word >> UINT(i - start)) << UINT(31))


@compiled
def settle(indices, values, sent, residual):  # type: ignore[no-untyped-def]
    """Leave in the residual what a frame does not carry of the values; `sent` is what it does.

    Returns:
        The sum of squares of what is left.
    """
    for i in range(indices.size):
        residual[indices[i]] = values[i] - sent[i]
    return squared_distance(values, sent)


@compiled_with_free_order
def squared_distance(left, right):  # type: ignore[no-untyped-def]
    total = 0.0
    for start in range(0, left.size, TILE):
        part = np.float32(0)
        for i in range(start, min(start + TILE, left.size)):
            part += (left[i] - right[i]) * (left[i] - right[i])
        total += part
    return total


@compiled
def encode_levels(indices, values, numel, smallest_block, threshold, mean_excess, residual):  # type: ignore[no-untyped-def]
    """Write the payload behind the section's settings, and the settings.

    indices: int32 [N], ascending below numel; values: float32 [N], finite; residual: float32
    [numel] or None, gets what the payload does not carry.

    Returns:
        payload (uint8), block, low bits, planes, the sum of squares of what the payload lacks
        (0 without a residual), step and the two reconstruction points.
    """
    count = values.size
    step = np.float32(choose_step(threshold, mean_excess, count / numel))
    low_bits = low_bits_for(step, mean_excess)
    levels = np.empty(count, np.uint16)
    first, rest = quantize(values, threshold, step, PLANES << low_bits, levels)
    share = math.exp(-step * 2**low_bits / mean_excess)
    places, depths, sizes = first_plane(levels, low_bits, share)
    exact = places[depths == PLANES] if sizes[PLANES - 1] else places[:0]
    squared_remainder = 0.0
    if residual is not None:
        sent = np.empty(count, np.float32)
        reconstruct(levels, step, first, rest, sent)
        copy_signs(values, sent)
        sent[exact] = values[exact]
        squared_remainder = settle(indices, values, sent, residual)
    block, counts = choose_blocks(indices, numel, smallest_block)
    room = set_room(numel, block, counts) + planes_room(count, sizes)
    payload = np.empty(room + count // 8 + count * low_bits // 8 + 32, np.uint8)
    start = payload.ctypes.data
    address = write_counts(counts, start)
    planes, address = write_planes(places, depths, count, address)
    patterns = values.view(np.uint32)
    for place in exact:
        address = write_rest(address, UINT(patterns[place]), 32)
    address = write_signs(values, address)
    if low_bits:
        address = write_low_bits(levels, low_bits, address)
    address = write_positions(indices, numel, block, counts, address)
    payload = payload[: address - start]
    return payload, block, low_bits, planes, squared_remainder, step, first, rest


@compiled
def copy_signs(source, target):  # type: ignore[no-untyped-def]
    patterns, bits = source.view(np.uint32), target.view(np.uint32)
    for i in range(bits.size):
        bits[i] |= patterns[i] & SIGN


@compiled
def open_levels(address, end, count, numel, block, low_bits, planes, step, first, rest):  # type: ignore[no-untyped-def]
    """Read all of a payload but the positions.

    Returns:
        what makes no sense (0 for nothing), the values (float32 [count]), the blocks' counts and
        the address of the positions.
    """
    values = np.empty(count, np.float32)
    counts, at = read_counts(address, end, numel, block, count)
    if at == 0:
        return BAD_BLOCKS, values, counts, at
    levels = np.zeros(count, np.uint16)
    last, at = read_planes(at, end, planes, low_bits, levels)
    if at == 0:
        return BAD_PLANES, values, counts, at
    exact_at = at
    if planes == PLANES:
        at += 4 * last.size
    signs_at = at
    lows_at = signs_at + (count + 7) // 8
    at = lows_at + (count * low_bits + 7) // 8
    if at > end:
        return BAD_VALUES, values, counts, at
    if low_bits:
        read_low_bits(lows_at, low_bits, levels)
    reconstruct(levels, step, first, rest, values)
    bits = values.view(np.uint32)
    apply_signs(signs_at, bits)
    if planes == PLANES:
        for i in range(last.size):
            bits[last[i]] = np.uint32(load_word(exact_at + 4 * i))
    return GOOD, values, counts, at
