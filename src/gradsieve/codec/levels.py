"""Survivors as quantized levels: the payload, written and read."""

import math
from struct import Struct

import numpy as np

from gradsieve.codec.bits import (
    STORE_REACH,
    float_bits,
    load_float,
    load_word,
    set_sign_bits,
    sign_bits,
    store_byte,
)
from gradsieve.codec.blocks import choose_blocks, even_edges, read_counts, set_room, write_counts
from gradsieve.codec.coding import Floats, Indices, Section
from gradsieve.codec.errors import refuse
from gradsieve.codec.planes import (
    MOST_LOW_BITS,
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
from gradsieve.codec.pruned import BlockedCoding, require_decoded
from gradsieve.codec.quantizer import (
    LARGEST_MAGNITUDE,
    SMALLEST_MEAN_EXCESS,
    choose_step,
    mean_excess_over,
    quantize,
    reconstruct,
)
from gradsieve.codec.settings import SETTINGS, SETTINGS_BYTES, read_block, write_settings
from gradsieve.codec.survivors import (
    BAD_BLOCKS,
    BAD_PLANES,
    BAD_VALUES,
    GOOD,
    add_survivors,
    settle,
)
from gradsieve.runtime.compiled import compiled

UINT = np.uint64
QUANTIZER = Struct("<fff")
"""Step, first and rest: the quantizer of a section, behind the settings of all pruned payloads."""
QUANTIZER_BYTES = QUANTIZER.size
SIGN = np.uint32(0x80000000)
FLOAT_STEP = 2.0**-23
"""The distance from 1 to the next float32."""


class Levels(BlockedCoding):
    """Each survivor's level of a scalar quantizer whose dead zone is the threshold, and its sign.

    The lowest bits of the levels are sent as they are, the others as planes (see `planes`).
    """

    has_levels = True
    settings_bytes = SETTINGS.size + QUANTIZER.size

    def encode(
        self,
        indices: Indices,
        values: Floats,
        numel: int,
        smallest_block: int,
        threshold: np.float32,
        residual: Floats | None,
    ) -> Section | None:
        payload, low_bits, planes, squared_remainder = encode_levels(
            indices, values, numel, smallest_block, threshold, residual
        )
        if not payload.size:
            return None
        return Section(numel, indices.size, self, payload, low_bits, planes, squared_remainder)

    def read_values(self, section: Section) -> tuple[int, Indices, Floats, int]:
        damaged, counts, values, at = open_levels(
            section.payload, section.count, section.numel, section.low_bits, section.planes
        )
        return damaged, counts, values, at

    def add(self, section: Section, total: Floats, factor: np.float32, name: str) -> None:
        damaged = add_levels(
            section.payload,
            section.count,
            section.numel,
            section.low_bits,
            section.planes,
            factor,
            total,
        )
        require_decoded(damaged, name)

    def sign_bytes(self, section: Section) -> int:
        return (section.count + 7) // 8

    def check_payload(self, section: Section, name: str) -> None:
        super().check_payload(section, name)
        if section.low_bits > MOST_LOW_BITS:
            refuse(f"{name} low bits", f"{section.low_bits}, more than {MOST_LOW_BITS}")
        if section.planes > PLANES:
            refuse(f"{name} planes", f"{section.planes}, more than {PLANES}")
        check_quantizer(section, name)

    def step(self, section: Section) -> float:
        return step_of(section)


def check_quantizer(section: Section, name: str) -> None:
    """Raise FrameError where a number of the quantizer is no finite magnitude."""
    numbers = QUANTIZER.unpack_from(section.payload.data, SETTINGS.size)
    for field, number in zip(("step", "first", "rest"), numbers, strict=True):
        if not 0 <= number < math.inf:
            refuse(f"{name} {field}", f"{number} is no finite magnitude")


def step_of(section: Section) -> float:
    """Return the step of the quantizer of a section that has one."""
    return float(QUANTIZER.unpack_from(section.payload.data, SETTINGS.size)[0])


@compiled
def chosen_step(values, threshold, numel):  # type: ignore[no-untyped-def]
    """Return the step for the survivors of a parameter (float32) and their mean excess.

    The step is 0 where levels might leave the range of float32.
    """
    # Where all magnitudes are equal to the threshold any step will do, provided it is not 0.
    mean_excess = max(mean_excess_over(threshold, values), threshold * FLOAT_STEP)
    if not (SMALLEST_MEAN_EXCESS < mean_excess < LARGEST_MAGNITUDE > threshold):
        return np.float32(0), mean_excess
    return np.float32(choose_step(threshold, mean_excess, values.size / numel)), mean_excess


@compiled
def write_signs(values, address):  # type: ignore[no-untyped-def]
    """Write a bit for each of float32 [N], 1 for negative, and return the address behind them."""
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
    """Negate those of float32 [N] whose bit, written by `write_signs`, is set."""
    target = values.ctypes.data
    whole = values.size // 8 * 8
    for i in range(0, whole, 8):
        set_sign_bits(target + 4 * i, load_word(address + i // 8))
    word = load_word(address + whole // 8)
    for i in range(whole, values.size):
        if word >> UINT(i - whole) & UINT(1):
            values[i] = -values[i]


@compiled
def encode_levels(indices, values, numel, smallest_block, threshold, residual):  # type: ignore[no-untyped-def]
    """Write a payload.

    indices: int32 [N], ascending below numel; values: float32 [N], finite, magnitudes of
    `threshold` (float32) or more; residual: float32 [numel], where the error of the values is
    written, or None.

    Returns:
        the payload (uint8, empty where levels might leave the range of float32), the number of low
        bits, the number of planes, and the sum of squares of the error (0 without a residual).
    """
    step, mean_excess = chosen_step(values, threshold, numel)
    if step == 0:
        return np.empty(0, np.uint8), 0, 0, 0.0
    low_bits = low_bits_for(step, mean_excess)
    levels = np.empty(values.size, np.uint16)
    first, rest = quantize(values, threshold, step, PLANES << low_bits, levels)
    places, depths = first_plane(levels, low_bits)
    exact = places[depths == PLANES]
    squared_remainder = 0.0
    if residual is not None:
        sent = np.empty(values.size, np.float32)
        reconstruct(levels, step, first, rest, sent)
        copy_signs(values, sent)
        sent[exact] = values[exact]
        squared_remainder = settle(indices, values, sent, residual)
    block, counts = choose_blocks(indices, numel, smallest_block)
    edges = even_edges(numel, block)
    room = SETTINGS_BYTES + QUANTIZER_BYTES + set_room(edges, counts)
    room += planes_room(values.size, depths) + 4 * exact.size
    room += values.size * (1 + low_bits) // 8 + 3 * STORE_REACH
    payload = np.empty(room, np.uint8)
    start = payload.ctypes.data
    address = write_settings(block, threshold, start)
    for number in (step, first, rest):
        address = write_rest(address, float_bits(number), 32)
    address = write_counts(counts, address)
    planes, address = write_planes(places, depths, values.size, address)
    patterns = values.view(np.uint32)
    for place in exact:
        address = write_rest(address, UINT(patterns[place]), 32)
    address = write_signs(values, address)
    if low_bits:
        address = write_low_bits(levels, low_bits, address)
    address = write_positions(indices, edges, counts, address)
    return payload[: address - start], low_bits, planes, squared_remainder


@compiled
def add_levels(payload, count, numel, low_bits, planes, factor, total):  # type: ignore[no-untyped-def]
    """Compute total[positions] += factor · values; return which part is damaged, GOOD for none."""
    found, counts, values, at = open_levels(payload, count, numel, low_bits, planes)
    if found != GOOD:
        return found
    return add_survivors(payload, at, numel, counts, values, factor, total)


@compiled
def copy_signs(source, target):  # type: ignore[no-untyped-def]
    """Give the signs of float32 [N] to the magnitudes in `target`, float32 [N]."""
    patterns, bits = source.view(np.uint32), target.view(np.uint32)
    for i in range(bits.size):
        bits[i] |= patterns[i] & SIGN


@compiled
def open_levels(payload, count, numel, low_bits, planes):  # type: ignore[no-untyped-def]
    """Return what `BlockedCoding.read_values` does."""
    start = payload.ctypes.data
    end = start + payload.size
    values = np.empty(count, np.float32)
    block, at = read_block(start)
    step, first, rest = load_float(at), load_float(at + 4), load_float(at + 8)
    counts, at = read_counts(at + QUANTIZER_BYTES, end, numel, block, count)
    if at == 0:
        return BAD_BLOCKS, counts, values, at
    levels = np.zeros(count, np.uint16)
    last, at = read_planes(at, end, planes, low_bits, levels)
    if at == 0:
        return BAD_PLANES, counts, values, at
    exact_at = at
    if planes == PLANES:
        at += 4 * last.size
    signs_at = at
    lows_at = signs_at + (count + 7) // 8
    at = lows_at + (count * low_bits + 7) // 8
    if at > end:
        return BAD_VALUES, counts, values, at
    if low_bits:
        read_low_bits(lows_at, low_bits, levels)
    reconstruct(levels, step, first, rest, values)
    apply_signs(signs_at, values)
    bits = values.view(np.uint32)
    if planes == PLANES:
        for i in range(last.size):
            bits[last[i]] = np.uint32(load_word(exact_at + 4 * i))
    return GOOD, counts, values, at
