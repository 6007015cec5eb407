"""Sets of positions come back as they were, in as many bits as their entropy asks for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsieve.codec import decode_frame, encode_frame, pruned_section
from gradsieve.codec.positions import rice_parameter
from gradsieve.codec.settings import SETTINGS
from gradsieve.lab.bench.codec import one_block_bits

DENSITIES = [0.0005, 0.001, 0.01, 0.05, 0.15, 0.3, 0.6]


def entropy(density: float) -> float:
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)


def position_bits(indices: np.ndarray, numel: int, row: int = 0) -> int:
    """The entropy of blocks' counts and gaps, with values of a known size beside them."""
    values = np.ones(indices.size, np.float32)
    section = pruned_section(indices, values, numel, 0.5, "bfloat16", row=row)
    return 8 * (section.payload.size - SETTINGS.size - 2 * indices.size)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_set_comes_back(data):
    numel = data.draw(st.integers(1, 5000), label="numel")
    indices = data.draw(st.sets(st.integers(0, numel - 1)), label="indices")
    positions = np.array(sorted(indices), np.int32)
    row = data.draw(st.integers(0, 700), label="row")
    values = np.arange(1, positions.size + 1, dtype=np.float32)
    section = pruned_section(positions, values, numel, 0.5, "float32", row=row)
    frame = encode_frame([section])
    got, numbers = decode_frame(frame).sections[0].survivors()
    np.testing.assert_array_equal(got, positions)
    np.testing.assert_array_equal(numbers, values)


@pytest.mark.parametrize("count", [1, 2, 2**20, 2**31 - 1])
def test_the_largest_parameters_have_a_rice_parameter(count):
    assert 0 <= rice_parameter(count, 2**31 - 1) <= 31


def test_the_first_and_the_last_of_two_thousand_million():
    positions = np.array([0, 1, 2**31 - 2], np.int32)
    section = pruned_section(positions, np.ones(3, np.float32), 2**31 - 1, 0.5, "float32", row=999)
    np.testing.assert_array_equal(section.survivors()[0], positions)
    assert section.payload.size < 50


@pytest.mark.parametrize("density", DENSITIES)
def test_uniform_positions_take_no_more_than_1_03_of_their_entropy(density):
    numel = 2**21
    chosen = np.random.default_rng(1).choice(numel, round(density * numel), replace=False)
    indices = np.sort(chosen).astype(np.int32)
    for row in (0, 512):
        bits = position_bits(indices, numel, row)
        assert bits <= 1.03 * numel * entropy(density)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.3])
def test_crowded_rows_take_less_than_uniform_positions(density):
    rows, row = 1024, 784
    numbers = np.random.default_rng(2)
    weights = numbers.laplace(size=(rows, row)) * numbers.lognormal(0, 1.5, (rows, 1))
    magnitudes = np.abs(weights).ravel()
    threshold = np.quantile(magnitudes, 1 - density)
    indices = np.flatnonzero(magnitudes > threshold).astype(np.int32)
    assert position_bits(indices, magnitudes.size, row) < 0.9 * magnitudes.size * entropy(density)


@pytest.mark.parametrize("falling", [False, True])
def test_density_that_changes_along_a_parameter_is_used(falling):
    numel, row = 200_000, 1000
    density = np.linspace(0, 0.4, numel)[:: -1 if falling else 1]
    indices = np.flatnonzero(np.random.default_rng(1).random(numel) < density).astype(np.int32)
    assert position_bits(indices, numel, row) < 0.93 * one_block_bits(indices, numel)
