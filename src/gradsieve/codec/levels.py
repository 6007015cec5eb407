"""A parameter's survivors as levels: the payload of a section, written and read."""

import numpy as np

from gradsieve.codec.bits import float_bits, load_word, set_sign_bits, sign_bits, store_byte
from gradsieve.codec.blocks import (
    choose_blocks,
    read_counts,
    set_room,
    write_counts,
    write_settings,
)
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
from gradsieve.codec.quantizer import (
    LARGEST_MAGNITUDE,
    SMALLEST_MEAN_EXCESS,
    TILE,
    choose_step,
    mean_excess_over,
    quantize,
    reconstruct,
)
from gradsieve.codec.survivors import BAD_BLOCKS, BAD_PLANES, BAD_VALUES, GOOD, add_survivors
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
def apply_signs(address, values):  # type: ignore[no-untyped-def]
    """Make float32 [N] negative where the bits that `write_signs` wrote are set."""
    target = values.ctypes.data
    whole = values.size // 8 * 8
    for i in range(0, whole, 8):
        set_sign_bits(target + 4 * i, load_word(address + i // 8))
    word = load_word(address + whole // 8)
    for i in range(whole, values.size):
        if word >> UINT(i - whole) & UINT(1):
            values[i] = -values[i]


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
def encode_levels(indices, values, numel, smallest_block, threshold, residual):  # type: ignore[no-untyped-def]
    """Write a section's payload.

    indices: int32 [N], ascending below numel; values: float32 [N], finite, magnitudes of
    `threshold` (float32) or more; residual: float32 [numel] or None, gets what the payload does
    not carry.

    Returns:
        payload (uint8, empty where levels might leave float32's range), low bits, planes, and
        the sum of squares of what the payload lacks (0 without a residual).
    """
    count = values.size
    mean_excess = mean_excess_over(threshold, values)
    if not (SMALLEST_MEAN_EXCESS < mean_excess < LARGEST_MAGNITUDE > threshold):
        return np.empty(0, np.uint8), 0, 0, 0.0
    step = np.float32(choose_step(threshold, mean_excess, count / numel))
    low_bits = low_bits_for(step, mean_excess)
    levels = np.empty(count, np.uint16)
    first, rest = quantize(values, threshold, step, PLANES << low_bits, levels)
    places, depths = first_plane(levels, low_bits)
    exact = places[depths == PLANES]
    squared_remainder = 0.0
    if residual is not None:
        sent = np.empty(count, np.float32)
        reconstruct(levels, step, first, rest, sent)
        copy_signs(values, sent)
        sent[exact] = values[exact]
        squared_remainder = settle(indices, values, sent, residual)
    block, counts = choose_blocks(indices, numel, smallest_block)
    room = set_room(numel, block, counts) + planes_room(count, depths) + 4 * exact.size
    payload = np.empty(room + count // 8 + count * low_bits // 8 + 64, np.uint8)
    start = payload.ctypes.data
    address = write_settings(block, threshold, start)
    for number in (step, first, rest):
        address = write_rest(address, float_bits(number), 32)
    address = write_counts(counts, address)
    planes, address = write_planes(places, depths, count, address)
    patterns = values.view(np.uint32)
    for place in exact:
        address = write_rest(address, UINT(patterns[place]), 32)
    address = write_signs(values, address)
    if low_bits:
        address = write_low_bits(levels, low_bits, address)
    address = write_positions(indices, numel, block, counts, address)
    return payload[: address - start], low_bits, planes, squared_remainder


@compiled
def add_levels(  # type: ignore[no-untyped-def]
    address, end, count, numel, block, low_bits, planes, step, first, rest, factor, total
):
    """total[positions] += factor · values, of all of a payload; what makes no sense, or 0."""
    found, values, counts, at = open_levels(
        address, end, count, numel, block, low_bits, planes, step, first, rest
    )
    if found != GOOD:
        return found
    return add_survivors(at, end, numel, block, counts, values, factor, total)


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
    reconstruct(levels, np.float32(step), np.float32(first), np.float32(rest), values)
    apply_signs(signs_at, values)
    bits = values.view(np.uint32)
    if planes == PLANES:
        for i in range(last.size):
            bits[last[i]] = np.uint32(load_word(exact_at + 4 * i))
    return GOOD, values, counts, at
