"""Cut a set of positions into blocks, where that takes fewer bits.

Survivors cluster in rows and filters of a parameter. With a count for each block of one row or a
few, positions in a crowded block take few bits each, and an empty block takes none. The counts are
encoded as a set of positions too: the running sums of (count + 1), less one, in a single block.
"""

import math

import numpy as np

from gradsieve.codec.bits import bit_length
from gradsieve.codec.positions import (
    behind_last,
    positions_room,
    read_some,
    start_reading,
    write_positions,
)
from gradsieve.runtime.compiled import compiled

UINT = np.uint64
RICE_EXTRA = 1.47
"""The bits of a Rice code beyond log₂(length / count), at small densities."""
PARTS_OF_A_BIT = 2.0**16
"""Logarithms are rounded to multiples of 1 / PARTS_OF_A_BIT. Two block lengths often promise the
same bits, and the choice must not depend on a logarithm's last bit, which differs by processor."""
LOGARITHMS = np.round(np.log2(np.arange(4096).clip(1)) * PARTS_OF_A_BIT) / PARTS_OF_A_BIT
FEWEST_IN_A_BLOCK = 2
"""The mean number of survivors in the shortest block that is tried."""
MOST_POSITIONS = 2**31 - 1
RUN, SAMPLED_OF, SAMPLED_FROM = 1024, 8, 32 * 1024
"""From SAMPLED_FROM survivors on, one of SAMPLED_OF runs of RUN survivors is looked at."""
DOUBLINGS = 6
"""The number of block lengths that are tried, each twice the one before, beside one block."""


@compiled
def rounded_log2(number):  # type: ignore[no-untyped-def]
    """Return log₂, rounded so that it is the same on every processor."""
    return math.floor(math.log2(number) * PARTS_OF_A_BIT + 0.5) / PARTS_OF_A_BIT


@compiled
def expected_bits(count, length, log_length):  # type: ignore[no-untyped-def]
    """Return an estimate of the bits of `count` positions among `length`, to compare lengths by."""
    if count == 0:
        return 0.0
    log_count = LOGARITHMS[count] if count < LOGARITHMS.size else rounded_log2(count)
    return min(count * (log_length - log_count + RICE_EXTRA), length)


@compiled
def blocks_of(universe, block):  # type: ignore[no-untyped-def]
    """Return the number of blocks."""
    return (universe + block - 1) // block


@compiled
def even_edges(universe, block):  # type: ignore[no-untyped-def]
    """Return where each block begins, and the universe, int64 [blocks + 1]."""
    edges = np.empty(blocks_of(universe, block) + 1, np.int64)
    for b in range(edges.size):
        edges[b] = min(b * block, universe)
    return edges


@compiled
def one_block(universe):  # type: ignore[no-untyped-def]
    """Return the edges of a single block, int64 [2]."""
    edges = np.zeros(2, np.int64)
    edges[1] = universe
    return edges


@compiled
def count_blocks(indices, start, stop, block):  # type: ignore[no-untyped-def]
    """Return the number of indices in each block from `start` on, int32.

    All indices are in start .. stop - 1.
    """
    counts = np.zeros((4, blocks_of(stop - start, block)), np.int32)
    # Exact for 31-bit numbers (T. Granlund, P. Montgomery, Division by Invariant Integers using
    # Multiplication, PLDI 1994, theorem 4.2).
    shift = 31 + bit_length(np.int64(block) - 1)
    factor = UINT((1 << shift) // block + 1)
    quarter = indices.size // 4
    # Four separate counts, so that no addition waits for the one before.
    for i in range(quarter):
        for part in range(4):
            counts[part, (UINT(indices[part * quarter + i] - start) * factor) >> UINT(shift)] += 1
    for i in range(4 * quarter, indices.size):
        counts[0, (UINT(indices[i] - start) * factor) >> UINT(shift)] += 1
    for part in range(1, 4):
        for b in range(counts.shape[1]):
            counts[0, b] += counts[part, b]
    return counts[0].copy()


@compiled
def merge_pairs(counts):  # type: ignore[no-untyped-def]
    """Return the counts of blocks that are twice as long."""
    merged = np.zeros((counts.size + 1) // 2, np.int32)
    for b in range(counts.size):
        merged[b >> 1] += counts[b]
    return merged


@compiled
def choose_blocks(indices, universe, smallest):  # type: ignore[no-untyped-def]
    """Return the block length that promises the fewest bits, and the counts of its blocks, int32.

    smallest: the shortest block to try, 0 for none. The length is `universe` where one block is
    best.
    """
    whole = np.full(1, indices.size, np.int32)
    block = best_block(indices, universe, smallest) if smallest and indices.size else universe
    if block == universe:
        return max(universe, 1), whole
    counts = count_blocks(indices, 0, universe, block)
    cut = set_room(even_edges(universe, block), counts)
    if cut < set_room(one_block(universe), whole):
        return block, counts
    return universe, whole


@compiled
def best_block(indices, universe, smallest):  # type: ignore[no-untyped-def]
    """Return the block length of the fewest expected bits, or `universe` for one block."""
    count = indices.size
    shortest = smallest
    while shortest * count < FEWEST_IN_A_BLOCK * universe:
        shortest *= 2
    # The counts are positions themselves, and positions are int32.
    if 2 * shortest > universe or count + blocks_of(universe, shortest) > MOST_POSITIONS:
        return universe
    bits, seen = np.zeros(DOUBLINGS), 0
    if count < SAMPLED_FROM:
        add_expected_bits(indices, 0, universe, shortest, bits)
        seen = count
    else:
        # The run in the middle of SAMPLED_OF, since densities may rise or fall along a parameter.
        for first in range(RUN * (SAMPLED_OF - 1) // 2, count - RUN, RUN * SAMPLED_OF):
            run = indices[first : first + RUN]
            add_expected_bits(run, run[0], run[RUN - 1] + 1, shortest, bits)
            seen += RUN
    best, fewest = universe, expected_bits(count, universe, rounded_log2(universe))
    for doubling in range(DOUBLINGS):
        block = shortest << doubling
        blocks = blocks_of(universe, block)
        if blocks > 1:
            table = expected_bits(blocks, count + blocks, rounded_log2(count + blocks))
            promised = table + bits[doubling] * count / seen
            if promised < fewest:
                best, fewest = block, promised
    return best


@compiled
def add_expected_bits(indices, low, high, shortest, bits):  # type: ignore[no-untyped-def]
    """Add to bits [DOUBLINGS] the expected bits of indices in low .. high - 1, by block length."""
    longest = shortest << (DOUBLINGS - 1)
    start = low // longest * longest
    counts = count_blocks(indices, start, high, shortest)
    for doubling in range(DOUBLINGS):
        block = shortest << doubling
        log_block = rounded_log2(block)
        for b in range(counts.size):
            before, behind = start + b * block, start + (b + 1) * block
            if before >= low and behind <= high:
                bits[doubling] += expected_bits(counts[b], block, log_block)
            elif counts[b]:
                length = min(behind, high) - max(before, low)
                bits[doubling] += expected_bits(counts[b], length, rounded_log2(length))
        counts = merge_pairs(counts)


@compiled
def write_counts(counts, address):  # type: ignore[no-untyped-def]
    """Write the counts at an address, and return the address behind them.

    Nothing is written for one block, whose count is known.
    """
    if counts.size == 1:
        return address
    marks = np.empty(counts.size, np.int32)
    total = 0
    for b in range(counts.size):
        total += counts[b]
        marks[b] = total + b
    universe = total + counts.size
    return write_positions(marks, one_block(universe), np.full(1, marks.size, np.int32), address)


@compiled
def set_room(edges, counts):  # type: ignore[no-untyped-def]
    """Return an upper bound of the bytes that `write_counts` and `write_positions` touch."""
    return positions_room(edges, counts) + counts_room(counts)


@compiled
def counts_room(counts):  # type: ignore[no-untyped-def]
    """Return an upper bound of the bytes that `write_counts` touches."""
    total = counts.size
    for b in range(counts.size):
        total += counts[b]
    return positions_room(one_block(total), np.full(1, counts.size, np.int32))


@compiled
def read_counts(address, end, universe, block, count):  # type: ignore[no-untyped-def]
    """Return the counts of the blocks, int32, and the address behind them.

    The address is 0 where the counts are damaged.
    """
    size = blocks_of(universe, block)
    if size <= 1:
        return np.full(1, count, np.int32), address
    if size > 8 * (end - address) or count + size > MOST_POSITIONS:
        return np.zeros(1, np.int32), np.int64(0)
    counts = np.zeros(size, np.int32)
    total = count + size
    one = np.full(1, size, np.int32)
    edges = one_block(total)
    state = start_reading(address, edges, one)
    if not read_some(state, address, end, edges, one, counts):
        return counts, np.int64(0)
    behind = -1
    for b in range(size):
        mark = np.int64(counts[b])
        counts[b] = mark - behind - 1
        behind = mark
        if counts[b] > min(block, universe - b * block):
            return counts, np.int64(0)
    if behind != total - 1:
        return counts, np.int64(0)
    return counts, behind_last(state)
