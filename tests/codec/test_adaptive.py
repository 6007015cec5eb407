"""Numbers come back from the arithmetic coder, in about as many bits as their entropy asks for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsieve.codec.adaptive import (
    LARGEST,
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
from gradsieve.runtime.compiled import compiled


@compiled
def write(numbers, address):
    state, probabilities = start_writing(address), new_probabilities()
    for number in numbers:
        put_number(state, probabilities, number)
        put_plain(state, number, 3)
    return end_writing(state)


@compiled
def read(numbers, plain, address, end):
    state, probabilities = start_reading_bits(address, end), new_probabilities()
    for i in range(numbers.size):
        numbers[i] = get_number(state, probabilities, end)
        plain[i] = get_plain(state, 3, end)
    return ends_at(state)


def written(numbers):
    stream = np.zeros(100 * numbers.size + 100, np.uint8)
    return stream, write(numbers, stream.ctypes.data) - stream.ctypes.data


def come_back(numbers):
    stream, size = written(numbers)
    stream[size:] = 255  # What lies behind a stream does not matter.
    found, plain = np.empty_like(numbers), np.empty_like(numbers)
    start = stream.ctypes.data
    assert read(found, plain, start, start + size) == start + size
    np.testing.assert_array_equal(found, numbers)
    np.testing.assert_array_equal(plain, numbers & 7)
    return size


@settings(deadline=None, max_examples=200)
@given(numbers=st.lists(st.integers(0, LARGEST) | st.integers(0, 14), max_size=200))
def test_any_numbers_come_back(numbers):
    come_back(np.array(numbers, np.int64))


def test_the_largest_and_the_smallest_alone_and_in_turn():
    for numbers in ([], [0], [LARGEST], [0, LARGEST] * 100, [0] * 5000 + [LARGEST] + [0] * 5000):
        come_back(np.array(numbers, np.int64))


@pytest.mark.parametrize("mean", [0.02, 0.3, 1.0, 5.0])
def test_numbers_take_little_more_than_their_entropy(mean):
    p = 1 / (1 + mean)
    numbers = np.random.default_rng(0).geometric(p, 20_000).astype(np.int64) - 1
    entropy = -math.log2(p) - (1 - p) / p * math.log2(1 - p)
    bits = 8 * come_back(numbers) / numbers.size - 3
    assert 0.97 * entropy < bits < 1.06 * entropy + 0.01


def test_a_stream_that_was_cut_ends_elsewhere():
    numbers = np.arange(200, dtype=np.int64)
    stream, size = written(numbers)
    start, found = stream.ctypes.data, np.empty_like(numbers)
    for cut in (5, size // 2, size):
        end = start + size - cut
        assert read(found, found.copy(), start, end) != end
