"""All elements of a parameter, each rounded to a power of two, without positions.

The squared error is about a thirtieth of the squares, for less than four bits an element. Error
feedback sends the error later. Each element is rounded by itself, so that the result does not
depend on the parameters that share its section. Exponents are written as differences from a running
mean, which follows the scale of the parameters.
"""

import numpy as np

from gradsieve.codec.adaptive import (
    AT,
    end_writing,
    ends_at,
    get_number,
    get_plain,
    new_probabilities,
    put_number,
    put_plain,
    start_reading_bits,
    start_writing,
)
from gradsieve.codec.coding import Floats, Section
from gradsieve.codec.errors import refuse
from gradsieve.codec.level_stream import MOST_BYTES, MOST_BYTES_OF_ONE
from gradsieve.codec.whole import WholeCoding
from gradsieve.runtime.arrays import UINT8, require_array
from gradsieve.runtime.compiled import compiled

MANTISSA_BITS = 23
HALF_A_MANTISSA = 1 << (MANTISSA_BITS - 1)
BIAS, NOT_FINITE = 127, 255
"""The exponent field of float32: that of 1, and that of infinities and NaN."""
PARTS, INERTIA_LOG = 16, 3
"""The mean exponent is kept in parts of one, and moves by an eighth of the distance."""
MOST_OF_A_BYTE = 64
"""The most elements that a byte may stand for, so that no forged section claims more."""


class WholePowers(WholeCoding):
    """The payload is an arithmetic code of the exponents and signs of all elements."""

    def encode(self, values: Floats) -> Section | None:
        payload = encode_powers(values)
        if not payload.size:
            return None
        return Section(values.size, values.size, self, payload)

    def values(self, section: Section, name: str) -> Floats:
        require_array(f"{name}'s payload", section.payload, UINT8)
        values = np.empty(section.numel, np.float32)
        if not read_powers(section.payload, values):
            refuse(f"{name} values", "do not decode")
        return values

    def check_size(self, section: Section, name: str) -> None:
        size, least = section.payload.size, fewest_bytes(section.numel)
        if size < least:
            refuse(f"{name} bytes", f"{size}, where {section.numel} elements take {least}")


@compiled
def fewest_bytes(numel):  # type: ignore[no-untyped-def]
    """Return the size of the smallest payload."""
    return max(1, (numel + MOST_OF_A_BYTE - 1) // MOST_OF_A_BYTE)


@compiled
def encode_powers(values):  # type: ignore[no-untyped-def]
    """Return a payload (uint8) of float32 [N], or an empty one where it cannot carry them."""
    payload = np.zeros((1 + MOST_BYTES) * values.size + 2 * MOST_BYTES_OF_ONE, np.uint8)
    start = payload.ctypes.data
    limit = start + payload.size - MOST_BYTES_OF_ONE
    state, probabilities = start_writing(start), new_probabilities()
    patterns, mean = values.view(np.uint32), np.int64(PARTS * BIAS)
    for i in range(values.size):
        # The nearest power of two has this exponent; 0 stands for numbers too small for one.
        bits = np.int64(patterns[i])
        exponent = ((bits + HALF_A_MANTISSA) >> MANTISSA_BITS) & NOT_FINITE
        if exponent == NOT_FINITE or bits >> MANTISSA_BITS & NOT_FINITE == NOT_FINITE:
            return payload[:0]
        if state[AT] > limit:
            return payload[:0]
        if exponent == 0:
            put_number(state, probabilities, np.int64(0))
            continue
        away = exponent - rounded(mean)
        put_number(state, probabilities, 2 * away + 1 if away >= 0 else -2 * away)
        put_plain(state, bits >> 31, 1)
        mean = moved(mean, exponent)
    size = end_writing(state) - start
    return payload[: max(size, fewest_bytes(values.size))]


@compiled
def rounded(mean):  # type: ignore[no-untyped-def]
    """Return a mean exponent as a whole number."""
    return (mean + PARTS // 2) // PARTS


@compiled
def moved(mean, exponent):  # type: ignore[no-untyped-def]
    """Return the mean exponent after another exponent."""
    return mean + ((PARTS * exponent - mean) >> INERTIA_LOG)


@compiled
def read_powers(payload, values):  # type: ignore[no-untyped-def]
    """Write what `encode_powers` has written to values, float32 [N]; return whether it is sound."""
    start = payload.ctypes.data
    end = start + payload.size
    state, probabilities = start_reading_bits(start, end), new_probabilities()
    patterns, mean = values.view(np.uint32), np.int64(PARTS * BIAS)
    for i in range(values.size):
        number = get_number(state, probabilities, end)
        if number == 0:
            patterns[i] = 0
            continue
        exponent = rounded(mean) + (number // 2 if number & 1 else -(number // 2))
        if not 0 < exponent < NOT_FINITE:
            return False
        sign = get_plain(state, 1, end)
        patterns[i] = np.uint32(sign << 31 | exponent << MANTISSA_BITS)
        mean = moved(mean, exponent)
    size = ends_at(state) - start
    for i in range(size, payload.size):
        if payload[i]:
            return False
    return payload.size == max(size, fewest_bytes(values.size))
