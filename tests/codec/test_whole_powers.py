"""Whole parameters as powers of two: every element arrives, in few bits, whatever is beside it."""

from dataclasses import replace

import numpy as np
import pytest

from gradsieve.codec import FrameError, Kind, decode_frame, encode_frame, whole_section
from gradsieve.codec.inspect import inspect_section

SMALLEST = np.float32(2.0**-126)


def biases(numel=1000):
    """Gradients of biases and norms: each parameter has its own scale."""
    numbers = np.random.default_rng(0)
    scales = np.repeat(numbers.lognormal(0, 3, -(-numel // 128)), 128)[:numel]
    return (numbers.standard_normal(numel) * scales).astype(np.float32)


@pytest.mark.parametrize("numel", [0, 1, 63, 64, 65, 1000])
def test_every_element_arrives_as_the_nearest_power_of_two(numel):
    values = biases(numel)
    (section,) = decode_frame(encode_frame([whole_section(values, "levels")])).sections
    assert section.kind is Kind.WHOLE_POWERS
    assert section.whole
    assert not section.is_exact
    places, arrived = section.survivors()
    np.testing.assert_array_equal(places, np.arange(numel))
    np.testing.assert_array_equal(np.sign(arrived), np.sign(values))
    mantissas, _ = np.frexp(arrived)
    assert set(np.abs(mantissas)) <= {0.5}
    assert (np.abs(arrived - values) <= np.abs(values) / 3).all()
    total = np.ones(numel, np.float32)
    section.add_to(total, 0.25)
    np.testing.assert_array_equal(total, 1 + np.float32(0.25) * arrived)


def test_they_take_less_than_four_bits_instead_of_sixteen():
    values = biases(8000)
    section = whole_section(values, "levels")
    assert 8 * section.payload.size / values.size < 3.9
    error = np.square(section.survivors()[1] - values).sum() / np.square(values).sum()
    assert error < 1 / 25
    report = inspect_section(section)
    assert report.kind == "whole powers"
    assert report.bytes == 16 + section.payload.size


def test_an_element_does_not_depend_on_those_beside_it():
    values = biases()
    apart = [whole_section(part, "levels").survivors()[1] for part in np.split(values, [3, 700])]
    np.testing.assert_array_equal(
        whole_section(values, "levels").survivors()[1], np.concatenate(apart)
    )


@pytest.mark.parametrize("numel", [1, 100, 100_000])
def test_zeros_take_next_to_nothing_and_stay_zeros(numel):
    section = whole_section(np.full(numel, -0.0, np.float32), "levels")
    assert section.payload.size == max(1, -(-numel // 64))
    (received,) = decode_frame(encode_frame([section])).sections
    arrived = received.survivors()[1]
    assert not arrived.any()
    assert not np.signbit(arrived).any()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 3e38])
def test_what_powers_of_two_cannot_carry_is_rounded(bad):
    values = biases()
    values[77] = bad
    section = whole_section(values, "levels")
    assert section.kind is Kind.WHOLE_BFLOAT16
    np.testing.assert_allclose(section.survivors()[1], values, rtol=2**-8)


def test_the_smallest_and_the_largest_magnitudes():
    values = np.array([SMALLEST, 0.4 * SMALLEST, 0.9 * SMALLEST, 1.5, 2.0**127, -1e38], np.float32)
    _, arrived = whole_section(values, "levels").survivors()
    np.testing.assert_array_equal(
        arrived, np.array([SMALLEST, 0, SMALLEST, 2, 2.0**127, -(2.0**126)], np.float32)
    )


def test_a_payload_that_is_too_short_or_too_long_is_refused():
    section = whole_section(biases(), "levels")
    longer = np.zeros(section.payload.size + 16, np.uint8)
    longer[: section.payload.size] = section.payload
    cuts = {
        "bytes": section.payload[:15],
        "values": section.payload[:-40],
        "values:": longer[: section.payload.size + 1],
    }
    for words, payload in cuts.items():
        damaged = replace(section, payload=payload)
        with pytest.raises(FrameError, match=f"section 0 {words}"):
            decode_frame(encode_frame([damaged])).sections[0].survivors("section 0")


def test_bytes_behind_the_code_must_be_zeros():
    section = whole_section(np.zeros(100_000, np.float32), "levels")
    section.payload[-1] = 1
    with pytest.raises(FrameError, match="section 0 values"):
        section.survivors("section 0")


@pytest.mark.parametrize("count", [0, 999, 1001])
def test_another_count_is_refused(count):
    section = replace(whole_section(biases(), "levels"), count=count)
    with pytest.raises(FrameError, match="section 0 count"):
        decode_frame(encode_frame([section]))


@pytest.mark.parametrize("factor", [1e38, -1e38])
def test_an_overflow_is_an_infinity_and_no_warning(factor):
    section = whole_section(np.full(3, 2.0**100, np.float32), "levels")
    total = np.zeros(3, np.float32)
    with np.errstate(all="raise"):
        section.add_to(total, factor)
    assert np.isinf(total).all()


def test_other_bytes_are_noticed_or_decode():
    section = whole_section(biases(), "levels")
    untouched = section.payload.copy()
    numbers, noticed = np.random.default_rng(0), 0
    for _ in range(200):
        section.payload[:] = untouched
        section.payload[numbers.integers(untouched.size)] ^= 1 << numbers.integers(8)
        try:
            _, arrived = section.survivors()
        except FrameError:
            noticed += 1
            continue
        assert np.isfinite(arrived).all()
    assert noticed > 20
