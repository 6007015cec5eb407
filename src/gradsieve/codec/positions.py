"""Ascending positions as bits: Rice codes of the gaps, with a parameter for each block.

A set of positions in 0 .. universe - 1 is cut into blocks of equal length. In each block the gap
before a position (from the block's start, or from behind the position before) is split at bit k:
the lower k bits go to one stream, the rest in unary (that many zeros, then a one) to another. k
follows from the block's count and length alone, so that both sides know it. At k = 0 the unary
stream is the block's bitmap without its last zeros: the choice of k is the choice between Rice
code and bitmap.
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
"""In millionths."""

MARKS = 1024
"""Ones that are looked for before they are made positions."""
LAST_WORD_START = 2**32 - 64
"""Ones behind have no place among 32-bit numbers; no set of int32 positions needs them."""

MOST_BITS_OF_FOUR = 14
"""Four such numbers are in every word that starts at a whole byte."""

# What a reader keeps between two calls of `read_some`.
BLOCK, LEFT, DONE, LOWS, WORD, WORD_START, NEXT, LOW_BIT, BLOCK_START, PARAMETER, FIELDS = range(11)


@compiled
def rice_parameter(count, length):  # type: ignore[no-untyped-def]
    """The k for `count` (1 or more) positions among `length`.

    The smallest with 2^k ≥ ln φ · (mean gap + 1/2), φ the golden ratio: optimal for geometric gaps
    (A. Kiely, Selecting the Golomb Parameter in Rice Coding, IPN Progress Report 42-159, 2004).
    In whole numbers, so that every machine finds the same.
    """
    # ⌈x⌉ - 1 has as many bits as the smallest power of two that is x or more has zeros. The
    # bits of the quotient (wanted - 1) // unit, without dividing:
    wanted, unit = LOG_OF_GOLDEN_RATIO * (2 * np.int64(length) - count), 2_000_000 * np.int64(count)
    shift = bit_length(wanted - 1) - bit_length(unit)
    return 0 if shift < 0 else shift + (unit << shift <= wanted - 1)


@compiled
def low_stream_bits(universe, block, counts):  # type: ignore[no-untyped-def]
    bits = 0
    for b in range(counts.size):
        if counts[b]:
            bits += counts[b] * rice_parameter(counts[b], min(block, universe - b * block))
    return bits


@compiled
def positions_room(universe, block, counts):  # type: ignore[no-untyped-def]
    """Bytes that `write_positions` may touch at most."""
    bits = low_stream_bits(universe, block, counts)
    for b in range(counts.size):
        if counts[b]:
            length = min(block, universe - b * block)
            bits += counts[b] + ((length - counts[b]) >> rice_parameter(counts[b], length))
    return bits // 8 + 2 * STORE_REACH


@compiled
def write_rest(address, word, bits):  # type: ignore[no-untyped-def]
    """Write the last, partial word of a stream; returns the address behind it."""
    while bits > 0:
        store_byte(address, word)
        word >>= UINT(8)
        address += 1
        bits -= 8
    return address


@compiled
def write_positions(indices, universe, block, counts, address):  # type: ignore[no-untyped-def]
    """Write both streams at an address; returns the address behind them."""
    for stream in range(2):
        word, fill, first = UINT(0), np.int64(0), 0
        for b in range(counts.size):
            count = np.int64(counts[b])
            if count:
                k = rice_parameter(count, min(block, universe - b * block))
                some, start = indices[first : first + count], b * block
                if stream == 0:
                    address, word, fill = write_lows(some, start, k, address, word, fill)
                else:
                    address, word, fill = write_quotients(some, start, k, address, word, fill)
                first += count
        address += (fill + 7) // 8
    return address


@compiled
def store_whole_bytes(address, word, fill):  # type: ignore[no-untyped-def]
    """Store a word of which `fill` bits, below 64, are filled.

    Returns:
        The address, word and fill to go on with: the bits of the last byte, if it is not whole.
    """
    store_word(address, word)
    return address + (fill >> 3), word >> UINT(fill & 56), fill & 7


@compiled
def four_at(numbers, at):  # type: ignore[no-untyped-def]
    # Unsigned places, or each would be looked at for counting from the end.
    first, second = numbers[at], numbers[at + UINT(1)]
    third, fourth = numbers[at + UINT(2)], numbers[at + UINT(3)]
    return np.int64(first), np.int64(second), np.int64(third), np.int64(fourth)


@compiled
def write_lows(indices, start, k, address, word, fill):  # type: ignore[no-untyped-def]
    """Append the lower k bits of the gaps behind `start` to a stream; as `store_whole_bytes`."""
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
    """Append the gaps behind `start` without their lower k bits, in unary."""
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
def start_reading(address, universe, block, counts):  # type: ignore[no-untyped-def]
    """The state of a reader of what `write_positions` wrote at an address."""
    state = np.zeros(FIELDS, np.int64)
    state[BLOCK] = -1
    state[WORD_START] = -64
    state[NEXT] = address + (low_stream_bits(universe, block, counts) + 7) // 8
    return state


@compiled
def read_marks(state, end, wanted, marks):  # type: ignore[no-untyped-def]
    """Write the places of the next `wanted` ones of the unary stream to marks (uint32).

    Returns False where the stream ends before. marks must have room for eight more.
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
def read_some(state, address, end, universe, block, counts, out):  # type: ignore[no-untyped-def]
    """Read the next out.size positions; returns whether they make sense.

    `end`: the address behind the last byte that belongs to the set. Whole words are read, so that
    eight bytes behind it must exist; what is in them does not matter. What was read is in order
    and below `universe` unless False is returned.
    """
    marks = np.empty(MARKS + 8, np.uint32)
    for start in range(0, out.size, MARKS):
        some = out[start : start + MARKS]
        if not read_marks(state, end, some.size, marks):
            return False
        if not place_marks(state, address, universe, block, counts, marks, some):
            return False
    return True


@compiled
def place_run(marks, start, ahead, k, address, low_bit, lows, out):  # type: ignore[no-untyped-def]
    """Positions of one block from its quotients and lower bits; returns the sum of the latter.

    start: the place of the first one if its quotient were 0; ahead: the position before it, with
    nothing of `lows`, the sum of the lower bits so far.
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
def place_marks(state, address, universe, block, counts, marks, out):  # type: ignore[no-untyped-def]
    """Turn places of ones, as many as out has elements, into positions; False as `read_some`."""
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
            k = np.int64(rice_parameter(left, min(block, universe - number * block)))
            done = lows = np.int64(0)
        origin = number * block
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
        # Positions ascend by construction: the last one tells for all.
        last = np.int64(marks[stop - 1])
        quotient = last - block_start - (done - 1)
        length = min(block, universe - origin)
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
    """The address behind a set that was read to its end."""
    unary = state[NEXT] - (state[WORD_START] + 64) // 8
    return unary + (state[BLOCK_START] + 7) // 8
