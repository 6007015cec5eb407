"""Write ascending positions as Rice codes of their gaps, with a parameter for each block.

A set of positions in 0 .. universe - 1 is cut into blocks. The gap of a position
is its distance from the end of the position before, or from the start of the block. It is split at
bit k: the lower k bits go to one stream, and the other bits, as a number in unary (that many zeros,
then a one), to another. k follows from the block's count and length alone, so that both sides know
it. At k = 0 the unary stream is the block's bitmap without its last zeros, so that the choice of k
includes the choice between Rice code and bitmap.
"""

import numpy as np

from gradsieve.codec.bits import (
    STORE_REACH,
    bit_length,
    load_word,
    ones,
    store_byte,
    store_ones,
    store_word,
    trailing_zeros,
)
from gradsieve.runtime.compiled import compiled

UINT = np.uint64
ONE = UINT(1)
LOG_OF_GOLDEN_RATIO = 481212
"""The natural logarithm of the golden ratio, in millionths."""

MARKS = 1024
"""The ones that are found in the unary stream before they are turned into positions."""
LAST_WORD_START = 2**32 - 64
"""Later ones have no 32-bit number. No set of int32 positions needs them."""

MOST_BITS_OF_FOUR = 14
"""The widest low bits of which four fit any 64-bit word that starts at a byte."""

# The fields of the state that a reader keeps between two calls of `read_some`.
BLOCK, LEFT, DONE, LOWS, WORD, WORD_START, NEXT, LOW_BIT, BLOCK_START, PARAMETER, FIELDS = range(11)


@compiled
def rice_parameter(count, length):  # type: ignore[no-untyped-def]
    """Return k for `count` (1 or more) positions among `length`.

    It is the smallest with 2^k ≥ ln φ · (mean gap + 1/2), φ being the golden ratio, which is the
    best for geometric gaps (A. Kiely, Selecting the Golomb Parameter in Rice Coding, IPN Progress
    Report 42-159, 2004). It is computed in whole numbers, so that all machines find the same.
    """
    # The smallest k with 2^k ≥ x is the number of bits of ⌈x⌉ - 1, here (wanted - 1) // unit. That
    # number of bits is found without dividing.
    wanted, unit = LOG_OF_GOLDEN_RATIO * (2 * np.int64(length) - count), 2_000_000 * np.int64(count)
    shift = bit_length(wanted - 1) - bit_length(unit)
    return 0 if shift < 0 else shift + (unit << shift <= wanted - 1)


@compiled
def low_stream_bits(edges, counts):  # type: ignore[no-untyped-def]
    """Return the length of the stream of low bits, in bits."""
    bits = 0
    for b in range(counts.size):
        if counts[b]:
            bits += counts[b] * rice_parameter(counts[b], edges[b + 1] - edges[b])
    return bits


@compiled
def positions_room(edges, counts):  # type: ignore[no-untyped-def]
    """Return an upper bound of the bytes that `write_positions` touches."""
    bits = low_stream_bits(edges, counts)
    for b in range(counts.size):
        if counts[b]:
            length = edges[b + 1] - edges[b]
            bits += counts[b] + ((length - counts[b]) >> rice_parameter(counts[b], length))
    return bits // 8 + 2 * STORE_REACH


@compiled
def write_rest(address, word, bits):  # type: ignore[no-untyped-def]
    """Write the lowest `bits` of a word, in whole bytes, and return the address behind them."""
    while bits > 0:
        store_byte(address, word)
        word >>= UINT(8)
        address += 1
        bits -= 8
    return address


@compiled
def write_positions(indices, edges, counts, address):  # type: ignore[no-untyped-def]
    """Write both streams at an address, and return the address behind them.

    indices: int32 [N], ascending; edges: int64 [blocks + 1], where each block begins, and the
    universe; counts: int32 [blocks], how many indices are in each.
    """
    for stream in range(2):
        word, fill, first = UINT(0), np.int64(0), 0
        for b in range(counts.size):
            count = np.int64(counts[b])
            if count:
                k = rice_parameter(count, edges[b + 1] - edges[b])
                some, start = indices[first : first + count], edges[b]
                if stream == 0:
                    address, word, fill = write_lows(some, start, k, address, word, fill)
                else:
                    address, word, fill = write_quotients(some, start, k, address, word, fill)
                first += count
        address += (fill + 7) // 8
    return address


@compiled
def store_whole_bytes(address, word, fill):  # type: ignore[no-untyped-def]
    """Store a word of which the lowest `fill` bits, fewer than 64, are filled.

    Returns:
        the address of the first byte that is not full, the bits in it as a word, and their number.
    """
    store_word(address, word)
    return address + (fill >> 3), word >> UINT(fill & 56), fill & 7


@compiled
def four_at(numbers, at):  # type: ignore[no-untyped-def]
    """Return four numbers from the place `at` (uint64) on, as int64."""
    # Unsigned, since numba tests signed indices for being negative, to count from the end.
    first, second = numbers[at], numbers[at + UINT(1)]
    third, fourth = numbers[at + UINT(2)], numbers[at + UINT(3)]
    return np.int64(first), np.int64(second), np.int64(third), np.int64(fourth)


@compiled
def write_lows(indices, start, k, address, word, fill):  # type: ignore[no-untyped-def]
    """Append the lower k bits of the gaps from `start` on to a stream.

    Returns:
        what `store_whole_bytes` returns.
    """
    if k == 0:
        return address, word, fill
    mask = np.int64((1 << k) - 1)
    fours = indices.size // 4 * 4 if k <= MOST_BITS_OF_FOUR else 0
    for i in range(0, fours, 4):
        a, b, c, d = four_at(indices, UINT(i))
        low = UINT((a - start) & mask) | UINT((b - a - 1) & mask) << UINT(k)
        high = UINT((c - b - 1) & mask) | UINT((d - c - 1) & mask) << UINT(k)
        word |= (low | high << UINT(2 * k)) << UINT(fill)
        address, word, fill = store_whole_bytes(address, word, fill + 4 * k)
        start = d + 1
    for i in range(fours, indices.size):
        word |= UINT((indices[i] - start) & mask) << UINT(fill)
        address, word, fill = store_whole_bytes(address, word, fill + k)
        start = np.int64(indices[i]) + 1
    return address, word, fill


@compiled
def write_quotients(indices, start, k, address, word, fill):  # type: ignore[no-untyped-def]
    """Append the gaps from `start` on, without their lower k bits, in unary.

    Returns:
        what `store_whole_bytes` returns.
    """
    fours = indices.size // 4 * 4
    for i in range(0, fours, 4):
        a, b, c, d = four_at(indices, UINT(i))
        p, q = (a - start) >> k, (b - a - 1) >> k
        r, s = (c - b - 1) >> k, (d - c - 1) >> k
        if fill + p + q + r + s < 60:
            first = ONE | ONE << UINT(q + 1)
            second = ONE | ONE << UINT(s + 1)
            four = first | second << UINT(q + r + 2)
            word |= four << UINT(fill + p)
            address, word, fill = store_whole_bytes(address, word, fill + p + q + r + s + 4)
        else:
            for quotient in (p, q, r, s):
                address, word, fill = write_unary(quotient, address, word, fill)
        start = d + 1
    for i in range(fours, indices.size):
        address, word, fill = write_unary((indices[i] - start) >> k, address, word, fill)
        start = np.int64(indices[i]) + 1
    return address, word, fill


@compiled
def write_unary(number, address, word, fill):  # type: ignore[no-untyped-def]
    """Append `number` zeros and a one, and return what `store_whole_bytes` returns."""
    end = fill + number
    while end >= 64:
        store_word(address, word)
        address, word = address + 8, UINT(0)
        end -= 64
    word |= ONE << UINT(end)
    if end == 63:
        store_word(address, word)
        return address + 8, UINT(0), np.int64(0)
    return store_whole_bytes(address, word, end + 1)


@compiled
def start_reading(address, edges, counts):  # type: ignore[no-untyped-def]
    """Return the state of a reader of the positions at an address, int64 [FIELDS]."""
    state = np.zeros(FIELDS, np.int64)
    state[BLOCK] = -1
    state[WORD_START] = -64
    state[NEXT] = address + (low_stream_bits(edges, counts) + 7) // 8
    return state


@compiled
def read_marks(state, end, wanted, marks):  # type: ignore[no-untyped-def]
    """Write the places of the next `wanted` ones of the unary stream to marks (uint32).

    `marks` must have room for eight more. Returns whether the stream has that many.
    """
    word, word_start, next_word = UINT(state[WORD]), state[WORD_START], state[NEXT]
    count = 0
    while count < wanted:
        if word == UINT(0):
            if next_word >= end:
                return False
            word = load_word(next_word)
            if end - next_word < 8:
                word &= (ONE << UINT(8 * (end - next_word))) - ONE
            next_word += 8
            word_start += 64
            if word_start > LAST_WORD_START:
                return False
        if ones(word) > wanted - count:
            for i in range(count, wanted):
                marks[i] = word_start + trailing_zeros(word)
                word &= word - ONE
            count = wanted
            break
        for start in range(0, 64, 8):
            store_ones(marks.ctypes.data + 4 * count, word >> UINT(start), word_start + start)
            count += ones((word >> UINT(start)) & UINT(255))
        word = UINT(0)
    state[WORD], state[WORD_START], state[NEXT] = np.int64(word), word_start, next_word
    return True


@compiled
def read_some(state, address, end, edges, counts, out):  # type: ignore[no-untyped-def]
    """Read the next out.size positions, and return whether they are valid.

    Valid positions ascend, each within its block.

    edges, counts: those of `write_positions`; end: the address behind the last byte of the set.
    Since whole words are read, eight bytes behind it must be readable; their content does not
    matter.
    """
    marks = np.empty(MARKS + 8, np.uint32)
    for start in range(0, out.size, MARKS):
        some = out[start : start + MARKS]
        if not read_marks(state, end, some.size, marks):
            return False
        if not place_marks(state, address, edges, counts, marks, some):
            return False
    return True


@compiled
def place_run(marks, start, ahead, k, address, low_bit, lows, out):  # type: ignore[no-untyped-def]
    """Write positions of one block to `out`, and return the sum of all lower bits so far.

    marks: the places of their ones in the unary stream. start and ahead: the place and the position
    that the first would have if all quotients and lower bits of the block were 0. lows: the sum of
    the lower bits of the block before it.
    """
    mask = (ONE << UINT(k)) - ONE
    fours = out.size // 4 * 4 if k <= MOST_BITS_OF_FOUR else 0
    for first in range(0, fours, 4):
        low = load_word(address + (low_bit >> 3)) >> UINT(low_bit & 7)
        low_bit += 4 * k
        for i in range(4):
            lows += np.int64(low & mask)
            low >>= UINT(k)
            at = UINT(first + i)
            out[at] = ahead + ((marks[at] - start - first - i) << k) + lows + first + i
    for i in range(fours, out.size):
        low = load_word(address + (low_bit >> 3)) >> UINT(low_bit & 7)
        lows += np.int64(low & mask)
        low_bit += k
        out[UINT(i)] = ahead + ((marks[UINT(i)] - start - i) << k) + lows + i
    return lows


@compiled
def place_marks(state, address, edges, counts, marks, out):  # type: ignore[no-untyped-def]
    """Turn the places of out.size ones into positions, and return whether they are valid."""
    number, left, done, lows = state[BLOCK], state[LEFT], state[DONE], state[LOWS]
    low_bit, block_start, k = state[LOW_BIT], state[BLOCK_START], state[PARAMETER]
    count = 0
    while count < out.size:
        if left == 0:
            number += 1
            if number == counts.size:
                return False
            left = np.int64(counts[number])
            if left == 0:
                continue
            k = np.int64(rice_parameter(left, edges[number + 1] - edges[number]))
            done = lows = np.int64(0)
        origin = edges[number]
        stop = count + min(left, out.size - count)
        if k == 0:
            shift = np.int32(origin - block_start)
            for i in range(count, stop):
                out[UINT(i)] = np.int32(marks[UINT(i)]) + shift
        else:
            start, ahead = block_start + done, origin + done
            lows = place_run(
                marks[count:stop], start, ahead, k, address, low_bit, lows, out[count:stop]
            )
            low_bit += k * (stop - count)
        done += stop - count
        left -= stop - count
        # Positions ascend by construction, so that checking the last one checks all.
        last = np.int64(marks[stop - 1])
        quotient = last - block_start - (done - 1)
        length = edges[number + 1] - origin
        if quotient > length >> k or (quotient << k) + lows + done > length:
            return False
        if left == 0:
            block_start = last + 1
        count = stop
    state[BLOCK], state[LEFT], state[DONE], state[LOWS] = number, left, done, lows
    state[LOW_BIT], state[BLOCK_START], state[PARAMETER] = low_bit, block_start, k
    return True


@compiled
def behind_last(state):  # type: ignore[no-untyped-def]
    """Return the address behind a set that was read to its end."""
    unary = state[NEXT] - (state[WORD_START] + 64) // 8
    return unary + (state[BLOCK_START] + 7) // 8
