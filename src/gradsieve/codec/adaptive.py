"""An adaptive binary arithmetic coder, and numbers written with it.

The coder keeps an interval low .. high of 32-bit numbers, which each bit divides in proportion to
the bit's probability (P. Howard, J. Vitter, Arithmetic Coding for Data Compression, Proc. IEEE
82(6), 1994). Leading bytes in which both ends agree are written. All of it is whole numbers, so
that every machine arrives at the same interval.

A probability begins at one half and moves towards each bit that it has seen, less the more it has
seen, so that it is close to the share of ones from the first few bits on.
"""

import numpy as np

from gradsieve.codec.bits import bit_length, load_word, store_byte
from gradsieve.runtime.compiled import compiled

UINT = np.uint64
MASK = 2**32 - 1
HALF = 2**15
"""A probability of one half, in 65536ths."""
MOST_SEEN = 60
"""The bits after which a probability does not become more inert."""
RATES = np.array([round(2**16 / (seen + 1.5)) for seen in range(MOST_SEEN + 1)], np.int64)
"""How far a probability moves, in 65536ths of its distance from 0 or 1, by the bits it has seen."""
LOW, HIGH, CODE, AT, FIELDS = range(5)
"""The fields of the state of a writer or a reader."""

STEPS = 12
"""Numbers below this are written as that many ones and a zero."""
WIDTHS = 15
"""The bits of the longest remainder of a number above them."""
CONTEXTS = STEPS + WIDTHS
"""The number of probabilities that numbers are written with."""
LARGEST = STEPS - 1 + 2**WIDTHS


@compiled
def new_probabilities():  # type: ignore[no-untyped-def]
    """Return probabilities of one half: int64 [2, CONTEXTS], 65536ths and the bits seen."""
    probabilities = np.zeros((2, CONTEXTS), np.int64)
    probabilities[0] = HALF
    return probabilities


@compiled
def loosen(probabilities, most):  # type: ignore[no-untyped-def]
    """Let probabilities move as if they had seen `most` bits at most."""
    for context in range(CONTEXTS):
        probabilities[1, context] = min(probabilities[1, context], most)


@compiled
def learn_bit(probabilities, context, bit):  # type: ignore[no-untyped-def]
    """Move a probability towards a bit."""
    seen = probabilities[1, context]
    p = probabilities[0, context]
    target = 65535 if bit else 1
    probabilities[0, context] = p + (((target - p) * RATES[seen]) >> 16)
    probabilities[1, context] = min(seen + 1, MOST_SEEN)


@compiled
def middle_of(low, high, p):  # type: ignore[no-untyped-def]
    """Return the last number of the part of an interval that stands for a one.

    p: the probability of a one in 65536ths, 1 .. 65535. Both parts have at least one number if
    the interval has two.
    """
    return low + (((high - low) * p) >> 16)


@compiled
def start_writing(address):  # type: ignore[no-untyped-def]
    """Return the state of a writer at an address, int64 [FIELDS]."""
    state = np.zeros(FIELDS, np.int64)
    state[HIGH], state[AT] = MASK, address
    return state


@compiled
def put_bit(state, p, bit):  # type: ignore[no-untyped-def]
    """Write a bit whose probability of being 1 is p / 65536."""
    low, high = state[LOW], state[HIGH]
    middle = middle_of(low, high, p)
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) >> 24 == 0:
        store_byte(state[AT], UINT(high >> 24))
        state[AT] += 1
        low = (low << 8) & MASK
        high = ((high << 8) & MASK) | 255
    state[LOW], state[HIGH] = low, high


@compiled
def end_writing(state):  # type: ignore[no-untyped-def]
    """Write the end of a stream, and return the address behind it."""
    # The ends of the interval differ in their first byte. A reader takes zeros for what follows.
    store_byte(state[AT], UINT(state[HIGH] >> 24))
    return state[AT] + 1


@compiled
def put_number(state, probabilities, number):  # type: ignore[no-untyped-def]
    """Write a number of 0 .. LARGEST."""
    for step in range(STEPS):
        bit = number > step
        put_bit(state, probabilities[0, step], bit)
        learn_bit(probabilities, step, bit)
        if not bit:
            return
    rest = number - STEPS + 1
    width = bit_length(rest) - 1
    for longer in range(WIDTHS):
        bit = width > longer
        put_bit(state, probabilities[0, STEPS + longer], bit)
        learn_bit(probabilities, STEPS + longer, bit)
        if not bit:
            break
    put_plain(state, rest, width)


@compiled
def put_plain(state, bits, count):  # type: ignore[no-untyped-def]
    """Write the lowest bits of a number, the highest first, as even chances."""
    for place in range(count - 1, -1, -1):
        put_bit(state, HALF, (bits >> place) & 1)


@compiled
def start_reading_bits(address, end):  # type: ignore[no-untyped-def]
    """Return the state of a reader at an address, int64 [FIELDS]."""
    state = np.zeros(FIELDS, np.int64)
    state[HIGH], state[AT] = MASK, address
    for _ in range(4):
        take_byte(state, end)
    return state


@compiled
def take_byte(state, end):  # type: ignore[no-untyped-def]
    """Append the next byte to the code; behind the end bytes are 0."""
    byte = np.int64(load_word(state[AT]) & UINT(255)) if state[AT] < end else np.int64(0)
    state[CODE] = ((state[CODE] << 8) & MASK) | byte
    state[AT] += 1


@compiled
def get_bit(state, p, end):  # type: ignore[no-untyped-def]
    """Read a bit whose probability of being 1 is p / 65536."""
    low, high = state[LOW], state[HIGH]
    middle = middle_of(low, high, p)
    bit = state[CODE] <= middle
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) >> 24 == 0:
        low = (low << 8) & MASK
        high = ((high << 8) & MASK) | 255
        take_byte(state, end)
    state[LOW], state[HIGH] = low, high
    return bit


@compiled
def get_number(state, probabilities, end):  # type: ignore[no-untyped-def]
    """Read a number that `put_number` has written."""
    for step in range(STEPS):
        bit = get_bit(state, probabilities[0, step], end)
        learn_bit(probabilities, step, bit)
        if not bit:
            return np.int64(step)
    width = np.int64(0)
    for longer in range(WIDTHS):
        bit = get_bit(state, probabilities[0, STEPS + longer], end)
        learn_bit(probabilities, STEPS + longer, bit)
        if not bit:
            break
        width += 1
    return get_plain(state, width, end) + (np.int64(1) << width) + STEPS - 1


@compiled
def get_plain(state, count, end):  # type: ignore[no-untyped-def]
    """Read what `put_plain` has written."""
    bits = np.int64(0)
    for _ in range(count):
        bits = (bits << 1) | np.int64(get_bit(state, HALF, end))
    return bits


@compiled
def ends_at(state):  # type: ignore[no-untyped-def]
    """Return the address at which the stream that was read must end."""
    return state[AT] - 3
