"""Write levels as planes of positions and as low bits.

The lowest few bits of a level are sent as they are. The others are a number, the depth: how many
planes the survivor is in. Plane 0 is the set of survivors whose depth is 1 or more, given by their
places among all survivors. Each later plane is the set of those members of the plane before that
are deeper, given by their places in it. A plane takes the bits of a set of its density: next to
none where the quantizer's step is wide, and about one a survivor where it is fine. This is unary
coding with an entropy code for each bit. Survivors in the last possible plane are sent exactly.
"""

import math

import numpy as np

from gradsieve.codec.bits import STORE_REACH, at_least, load_word, ones, store_ones, store_word
from gradsieve.codec.blocks import choose_blocks, even_edges, read_counts, write_counts
from gradsieve.codec.positions import (
    LOG_OF_GOLDEN_RATIO,
    behind_last,
    read_some,
    start_reading,
    write_positions,
    write_rest,
)
from gradsieve.runtime.compiled import compiled

UINT = np.uint64
PLANES = 24
"""The largest number of planes. The values of survivors in the last are sent exactly."""
SMALLEST_BLOCK = 256
"""The survivors in the shortest block of a plane."""
LONGEST_BLOCK_LOG = 30
MOST_LOW_BITS = 8
PLANE_HEADER = 5
"""The bytes before a plane: its size, u32, and log₂ of a block's length, u8, 0 for one block."""


@compiled
def low_bits_for(step, mean_excess):  # type: ignore[no-untyped-def]
    """Return how many bits of a level are sent as they are, because planes would not shorten them.

    This is the rule of `rice_parameter`, for levels whose frequency falls by the factor
    e^-(step / mean excess) from each to the next.
    """
    mean_level = 1 / math.expm1(step / mean_excess)
    k = 0
    while 2**k < LOG_OF_GOLDEN_RATIO / 1_000_000 * (mean_level + 0.5) and k < MOST_LOW_BITS:
        k += 1
    return k


@compiled
def first_plane(levels, low_bits):  # type: ignore[no-untyped-def]
    """Return the places of the survivors in plane 0 (int32) and their depths (uint8)."""
    # Room for eight more, because `store_ones` always writes eight numbers.
    places = np.empty(levels.size + 8, np.int32)
    source, target = levels.ctypes.data, places.ctypes.data
    unit = 1 << low_bits
    whole = levels.size // 8 * 8
    count = 0
    for i in range(0, whole, 8):
        members = at_least(source + 2 * i, unit)
        store_ones(target + 4 * count, members, i)
        count += ones(members)
    for i in range(whole, levels.size):
        places[count] = i
        count += levels[i] >= unit
    places = places[:count]
    depths = np.empty(count, np.uint8)
    for i in range(count):
        depths[i] = levels[UINT(places[i])] >> low_bits
    return places, depths


@compiled
def planes_room(count, depths):  # type: ignore[no-untyped-def]
    """Return an upper bound of the bytes that `write_planes` touches for `count` survivors."""
    members = 0
    for depth in depths:
        members += depth
    # A set takes at most 1.2 bits for each element of its universe, and its blocks' counts 0.1.
    return PLANES * (PLANE_HEADER + 4 * STORE_REACH) + (count + members) // 4


@compiled
def write_planes(places, depths, count, address):  # type: ignore[no-untyped-def]
    """Write the planes; return their number and the address behind them. Arrays are overwritten.

    places, depths: from `first_plane`; count: the number of survivors.
    """
    planes = 0
    while places.size:
        smallest = SMALLEST_BLOCK if places.size >= SMALLEST_BLOCK else 0
        block, counts = choose_blocks(places, count, smallest)
        log = 0
        while counts.size > 1 and 1 << log < block:
            log += 1
        address = write_rest(address, UINT(places.size) | UINT(log) << UINT(32), 40)
        address = write_counts(counts, address)
        address = write_positions(places, even_edges(count, block), counts, address)
        planes += 1
        if planes == PLANES:
            break
        count, size = places.size, 0
        for i in range(count):
            places[size] = i
            depths[size] = depths[i]
            size += depths[i] > planes
        places, depths = places[:size], depths[:size]
    return planes, address


@compiled
def write_low_bits(levels, low_bits, address):  # type: ignore[no-untyped-def]
    """Write the lowest bits of levels (uint16 [N]), and return the address behind them."""
    word, fill = UINT(0), 0
    mask = UINT((1 << low_bits) - 1)
    for i in range(levels.size):
        low = UINT(levels[i]) & mask
        word |= low << UINT(fill)
        fill += low_bits
        if fill >= 64:
            store_word(address, word)
            address += 8
            fill -= 64
            word = low >> UINT(low_bits - fill) if fill else UINT(0)
    return write_rest(address, word, fill)


@compiled
def read_planes(address, end, planes, low_bits, levels):  # type: ignore[no-untyped-def]
    """Add depth · 2^low_bits to levels (uint16 [N], zeros).

    Returns:
        the places of the survivors in the last plane (int32), and the address behind the planes,
        which is 0 where they are damaged.
    """
    universe = levels.size
    nothing = np.int64(0)
    members = np.empty(0, np.int32)
    for plane in range(planes):
        if end - address < PLANE_HEADER:
            return members, nothing
        header = load_word(address)
        address += PLANE_HEADER
        count = np.int64(header & UINT(0xFFFFFFFF))
        log = np.int64((header >> UINT(32)) & UINT(0xFF))
        if count == 0 or count > universe or log > LONGEST_BLOCK_LOG:
            return members, nothing
        block = 1 << log if log else universe
        counts, address = read_counts(address, end, universe, block, count)
        if address == 0:
            return members, nothing
        edges = even_edges(universe, block)
        state = start_reading(address, edges, counts)
        places = np.empty(count, np.int32)
        if not read_some(state, address, end, edges, counts, places):
            return members, nothing
        address = behind_last(state)
        for i in range(count):
            place = members[places[i]] if plane else places[i]
            places[i] = place
            levels[place] += np.uint16(1 << low_bits)
        members, universe = places, count
    return members, address


@compiled
def read_low_bits(address, low_bits, levels):  # type: ignore[no-untyped-def]
    """Add what `write_low_bits` has written to levels (uint16 [N])."""
    mask = UINT((1 << low_bits) - 1)
    bit = 0
    for i in range(levels.size):
        low = (load_word(address + (bit >> 3)) >> UINT(bit & 7)) & mask
        levels[i] += np.uint16(low)
        bit += low_bits
