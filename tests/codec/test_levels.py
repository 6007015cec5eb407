"""The quantizer's step is the best one, and its levels take what their entropy asks for."""

import math

import numpy as np
import pytest

from gradsieve.codec import Kind, encode_frame, pruned_section
from gradsieve.codec.planes import PLANES
from gradsieve.codec.quantizer import choose_step

NUMEL = 1_000_000
DENSITIES = [0.001, 0.01, 0.05, 0.15, 0.3, 0.6, 0.9]
NEARLY_ALL = [0.97, 0.999, 1.0]


def laplace(seed=0):
    return np.random.default_rng(seed).laplace(size=NUMEL).astype(np.float32)


def survivors(values, density):
    threshold = float(np.float32(np.quantile(np.abs(values), 1 - density)))
    indices = np.flatnonzero(np.abs(values) > threshold).astype(np.int32)
    return indices, values[indices], threshold


def exact_rate_and_error(threshold, step):
    """Bits and squared error an element of a Laplace source with unit scale, by integration."""
    p, q = math.exp(-threshold), math.exp(-step)
    position = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    level = -math.log2(1 - q) - q / (1 - q) * math.log2(q)
    unsent = 2 - p * (threshold**2 + 2 * threshold + 2)
    return position + p * (1 + level), unsent + p * (1 - step**2 * q / (1 - q) ** 2)


@pytest.mark.parametrize("density", DENSITIES)
def test_no_other_step_and_threshold_give_less_error_for_the_same_bits(density):
    threshold = -math.log(density)
    rate, error = exact_rate_and_error(threshold, choose_step(threshold, 1.0, density))
    for other in np.linspace(0.3, 1.7, 57) * threshold:
        steps = np.geomspace(0.05, 16, 400)
        candidates = [exact_rate_and_error(other, step) for step in steps]
        affordable = [e for r, e in candidates if r <= rate]
        assert not affordable or error <= 1.005 * min(affordable)


@pytest.mark.parametrize("density", DENSITIES + NEARLY_ALL)
def test_what_arrives_and_what_stays_is_what_was_selected(density):
    values = laplace() * np.repeat(np.random.default_rng(3).lognormal(0, 2, 1000), 1000)
    values = values.astype(np.float32)
    indices, selected, threshold = survivors(values, density)
    residual = np.full(NUMEL, 9.0, np.float32)
    section = pruned_section(indices, selected, NUMEL, threshold, "levels", residual=residual)
    places, arrived = section.survivors()
    np.testing.assert_array_equal(places, indices)
    rounding = 2.0**-23 * (np.abs(selected) + np.abs(arrived))
    assert (np.abs(arrived + residual[indices] - selected) <= rounding).all()
    assert (np.sign(arrived) == np.sign(selected)).all()
    untouched = np.ones(NUMEL, bool)
    untouched[indices] = False
    assert (residual[untouched] == 9).all()
    squares = float((residual[indices].astype(np.float64) ** 2).sum())
    assert section.squared_remainder == pytest.approx(squares, rel=1e-3)


@pytest.mark.parametrize("density", DENSITIES[1:-1])
@pytest.mark.parametrize("numel", [100_000, NUMEL])
def test_a_frame_takes_no_more_than_1_08_of_the_entropy_of_positions_signs_and_levels(
    density, numel
):
    indices, selected, threshold = survivors(laplace()[:numel], density)
    section = pruned_section(indices, selected, numel, threshold, "levels")
    levels = np.floor((np.abs(selected) - threshold) / section.step).astype(int)
    shares = np.bincount(levels)[np.unique(levels)] / levels.size
    position = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    bits = numel * (position + density * (1 - (shares * np.log2(shares)).sum()))
    assert 8 * encode_frame([section]).numel() <= 1.08 * bits


@pytest.mark.parametrize("draw", [np.random.Generator.laplace, np.random.Generator.normal])
@pytest.mark.parametrize("density", NEARLY_ALL)
def test_where_nearly_all_is_sent_levels_are_a_fine_quantizer(draw, density):
    values = draw(np.random.default_rng(5), size=100_000).astype(np.float32)
    threshold = 0.0 if density == 1 else float(np.quantile(np.abs(values), 1 - density))
    indices = np.flatnonzero(np.abs(values) > threshold).astype(np.int32)
    section = pruned_section(indices, values[indices], values.size, threshold, "levels")
    _, arrived = section.survivors()
    error = np.square(values[indices] - arrived).sum() / np.square(values).sum()
    assert error < 0.001
    assert section.payload.size < values.size


def test_magnitudes_that_are_all_alike_take_a_sign_each_and_arrive_exactly():
    values = np.float32(0.7) * np.random.default_rng(0).choice([-1, 1], 5000).astype(np.float32)
    indices = np.arange(0, 50_000, 10, dtype=np.int32)
    section = pruned_section(indices, values, 50_000, 0.7, "levels")
    assert section.payload.size < 6 * values.size / 8 + 60
    np.testing.assert_array_equal(section.survivors()[1], values)


def test_values_beyond_the_last_plane_arrive_exactly():
    indices, selected, threshold = survivors(laplace(), 0.3)
    selected[::10_000] *= 50
    section = pruned_section(indices, selected, NUMEL, threshold, "levels")
    assert section.kind is Kind.LEVELS
    assert section.planes == PLANES
    _, arrived = section.survivors()
    np.testing.assert_array_equal(arrived[::10_000], selected[::10_000])


@pytest.mark.parametrize(
    "values",
    [
        np.full(50, 0.25, np.float32),
        np.full(50, 1e-38, np.float32),
        np.array([1e-3, 3e38, -3e38], np.float32),
        np.array([-1.0], np.float32),
        np.geomspace(1e-30, 1e30, 200).astype(np.float32),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_extreme_values_lose_nothing(values, share):
    threshold = share * float(np.abs(values).min())
    residual = np.zeros(values.size, np.float32)
    indices = np.arange(values.size, dtype=np.int32)
    section = pruned_section(indices, values, values.size, threshold, "levels", residual=residual)
    _, arrived = section.survivors()
    rounding = 2.0**-23 * (np.abs(values.astype(np.float64)) + np.abs(arrived)) + 2.0**-149
    assert (np.abs(arrived.astype(np.float64) + residual - values) <= rounding).all()
