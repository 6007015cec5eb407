"""Ascending positions as bits: Rice codes of the gaps, with a parameter for each block.

A set of positions in 0 .. universe - 1 is cut into blocks of equal length. In each block the gap
before a position (from the block's start, or from behind the position before) is split at bit k:
the lower k bits go to one stream, the rest in unary (that many zeros, then a one) to another. k
follows from the block's count and length alone, so that both sides know it. At k = 0 the unary
stream is the block's bitmap without its last zeros: the choice of k is the choice between Rice
code and bitmap.
"""

import numpy as np

from gradsieve.codec.bits import bit_length, load_word, store_byte, store_word, trailing_zeros
from gradsieve.compiled import compiled

UINT = np.uint64
ONE = UINT(1)
LOG_OF_GOLDEN_RATIO = 481212
"""In millionths."""

# What a reader keeps between two calls of `read_some`.
BLOCK, LEFT, DONE, LOWS, WORD, WORD_START, NEXT, LOW_BIT, BLOCK_START, PARAMETER, FIELDS = range(11)


@compiled
def rice_parameter(count, length):  # type: ignore[no-untyped-def]
    """The k for `count` (1 or more) positions among `length`.

    The smallest with 2^k ≥ ln φ · (mean gap + 1/2), φ the golden ratio: optimal for geometric gaps
    (A. Kiely, Selecting the Golomb Parameter in Rice Coding, IPN Progress Report 42-159, 2004).
    In whole numbers, so that every machine finds the same.
    """
    # ⌈x⌉ - 1 has as many bits as the smallest power of two that is x or more has zeros.
    wanted = LOG_OF_GOLDEN_RATIO * (2 * np.int64(length) - count)
    return bit_length((wanted - 1) // (2_000_000 * np.int64(count)))


@compiled
def low_bits(universe, block, counts):  # type: ignore[no-untyped-def]
    bits = 0
    for b in range(counts.size):
        if counts[b]:
            bits += counts[b] * rice_parameter(counts[b], min(block, universe - b * block))
    return bits


@compiled
def positions_room(universe, block, counts):  # type: ignore[no-untyped-def]
    """Bytes that `write_positions` may touch at most."""
    bits = low_bits(universe, block, counts)
    for b in range(counts.size):
        if counts[b]:
            length = min(block, universe - b * block)
            bits += counts[b] + ((length - counts[b]) >> rice_parameter(counts[b], length))
    return bits // 8 + 16


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
    lows = address
    unary = address + (low_bits(universe, block, counts) + 7) // 8
    low_word, low_fill = UINT(0), UINT(0)
    word, at, word_end = UINT(0), UINT(0), UINT(64)
    first = 0
    for b in range(counts.size):
        count = np.int64(counts[b])
        if count == 0:
            continue
        k = UINT(rice_parameter(count, min(block, universe - b * block)))
        mask = (ONE << k) - ONE
        behind = UINT(b * block)
        some = indices[first : first + count]
        first += count
        for i in range(some.size):
            index = UINT(some[i])
            gap = index - behind
            behind = index + ONE
            at += gap >> k
            while at >= word_end:
                store_word(unary, word)
                unary += 8
                word_end += UINT(64)
                word = UINT(0)
            word |= ONE << (at & UINT(63))
            at += ONE
            low = gap & mask
            low_word |= low << low_fill
            low_fill += k
            if low_fill >= UINT(64):
                store_word(lows, low_word)
                lows += 8
                low_fill -= UINT(64)
                low_word = low >> (k - low_fill) if low_fill else UINT(0)
    write_rest(lows, low_word, np.int64(low_fill))
    return write_rest(unary, word, np.int64(at + UINT(64) - word_end))


@compiled
def start_reading(address, universe, block, counts):  # type: ignore[no-untyped-def]
    """The state of a reader of what `write_positions` wrote at an address."""
    state = np.zeros(FIELDS, np.int64)
    state[BLOCK] = -1
    state[WORD_START] = -64
    state[NEXT] = address + (low_bits(universe, block, counts) + 7) // 8
    return state


@compiled
def read_some(state, address, end, universe, block, counts, out):  # type: ignore[no-untyped-def]
    """Read up to out.size positions on; returns their number, -1 where the bits make no sense.

    `end`: the address behind the last byte that belongs to the set. Whole words are read, so that
    seven bytes behind it must exist; what is in them does not matter. What was read is in order
    and below `universe` unless -1 is returned.
    """
    number, left, done, lows = state[BLOCK], state[LEFT], state[DONE], state[LOWS]
    word, word_start, next_word = UINT(state[WORD]), state[WORD_START], state[NEXT]
    low_bit, block_start, k = state[LOW_BIT], state[BLOCK_START], state[PARAMETER]
    count = 0
    while count < out.size:
        if left == 0:
            number += 1
            if number == counts.size:
                number -= 1
                break
            left = np.int64(counts[number])
            if left == 0:
                continue
            k = np.int64(rice_parameter(left, min(block, universe - number * block)))
            done = lows = np.int64(0)
        mask = (UINT(1) << UINT(k)) - UINT(1)
        origin = number * block
        take = min(left, out.size - count)
        quotient = np.int64(0)
        position = np.int64(0)
        for _ in range(take):
            while word == UINT(0):
                if next_word >= end:
                    return -1
                word = load_word(next_word)
                if end - next_word < 8:
                    word &= (UINT(1) << UINT(8 * (end - next_word))) - UINT(1)
                next_word += 8
                word_start += 64
            at = word_start + trailing_zeros(word)
            word &= word - UINT(1)
            quotient = at - block_start - done
            lows += np.int64((load_word(address + (low_bit >> 3)) >> UINT(low_bit & 7)) & mask)
            low_bit += k
            position = origin + (quotient << k) + lows + done
            out[count] = position
            count += 1
            done += 1
        length = min(block, universe - origin)
        # Positions ascend by construction: the last one tells for all.
        if quotient > length >> k or position >= origin + length:
            return -1
        left -= take
        if left == 0:
            block_start = at + 1
    state[BLOCK], state[LEFT], state[DONE], state[LOWS] = number, left, done, lows
    state[WORD], state[WORD_START], state[NEXT] = np.int64(word), word_start, next_word
    state[LOW_BIT], state[BLOCK_START], state[PARAMETER] = low_bit, block_start, k
    return count


@compiled
def behind_last(state):  # type: ignore[no-untyped-def]
    """The address behind a set that was read to its end."""
    unary = state[NEXT] - (state[WORD_START] + 64) // 8
    return unary + (state[BLOCK_START] + 7) // 8
