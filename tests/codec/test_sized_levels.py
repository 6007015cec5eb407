"""Levels ordered by the size that is expected: they arrive as others do, in fewer bytes."""

from dataclasses import replace

import numpy as np
import pytest

from gradsieve.codec import FrameError, Grid, Kind, decode_frame, encode_frame, pruned_section
from gradsieve.codec.inspect import inspect_section

ROWS, COLUMNS = 96, 160


def graded(seed=0):
    """A matrix whose magnitudes halve from class to class, and its grid."""
    numbers = np.random.default_rng(seed)
    sides = [
        np.concatenate([np.sort(numbers.geometric(0.4, n // 2).clip(1, 8) - 1) for _ in range(2)])
        for n in (ROWS, COLUMNS)
    ]
    grid = Grid(*(side.astype(np.uint8) for side in sides))
    scale = 2.0 ** -(sides[0][:, None] + sides[1]).astype(float)
    values = numbers.laplace(size=(ROWS, COLUMNS)) * scale
    return values.astype(np.float32).reshape(-1), grid


def section_of(values, density, grid, residual=None):
    threshold = np.float32(np.quantile(np.abs(values), 1 - density))
    indices = np.flatnonzero(np.abs(values) > threshold).astype(np.int32)
    return indices, pruned_section(
        indices,
        values[indices],
        values.size,
        float(threshold),
        "levels",
        row=COLUMNS,
        residual=residual,
        grid=grid,
    )


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 1.0])
def test_what_arrives_and_what_stays_is_what_was_selected(density):
    values, grid = graded()
    residual = np.zeros_like(values)
    indices, section = section_of(values, density, grid, residual)
    assert section.kind is Kind.SIZED_LEVELS
    (received,) = decode_frame(encode_frame([section])).sections
    places, arrived = received.survivors()
    np.testing.assert_array_equal(places, indices)
    np.testing.assert_allclose(arrived + residual[indices], values[indices], rtol=1e-6, atol=1e-6)
    assert (np.sign(arrived) == np.sign(values[indices])).all()
    error = np.square(residual.astype(float)).sum()
    assert section.squared_remainder == pytest.approx(error, rel=1e-4)
    assert 0 < error < 0.1 * np.square(values[indices].astype(float)).sum()
    total = np.zeros_like(values)
    received.add_to(total, 0.5)
    expected = np.zeros_like(values)
    expected[places] = np.float32(0.5) * arrived
    np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.5])
def test_a_grid_that_is_right_saves_a_tenth_and_more(density):
    values, grid = graded()
    _, by_size = section_of(values, density, grid)
    _, in_blocks = section_of(values, density, None)
    assert by_size.payload.size < 0.9 * in_blocks.payload.size


def test_parts_add_up_to_the_payload():
    values, grid = graded()
    _, section = section_of(values, 0.1, grid)
    report = inspect_section(section)
    assert report.kind == "sized levels"
    assert report.block == COLUMNS
    assert report.step == section.step > 0
    assert report.bytes == 16 + section.payload.size
    assert report.signs_bytes == (section.count + 7) // 8
    assert min(report.counts_bytes, report.positions_bytes, report.values_bytes) > 0


def test_a_survivor_far_beyond_the_others_is_sent_exactly():
    values, grid = graded()
    values[[0, 5000]] = [3e30, -7e25]
    residual = np.zeros_like(values)
    indices, section = section_of(values, 0.1, grid, residual)
    places, arrived = section.survivors()
    np.testing.assert_array_equal(places, indices)
    assert arrived[0] == np.float32(3e30)
    assert residual[0] == 0


def test_few_survivors_and_other_values_need_no_grid():
    values, grid = graded()
    assert section_of(values, 0.001, grid)[1].kind is Kind.LEVELS
    indices = np.arange(100, dtype=np.int32)
    for mode, kind in (("float32", Kind.FLOAT32), ("bfloat16", Kind.BFLOAT16)):
        exact = pruned_section(indices, values[indices], values.size, 0.0, mode, grid=grid)
        assert exact.kind is kind
    values[3] = np.inf
    section = pruned_section(
        indices, values[indices], values.size, 0.0, "levels", grid=grid, finite=False
    )
    assert section.kind is Kind.FLOAT32


def test_a_grid_of_another_size_is_refused():
    values, grid = graded()
    indices = np.arange(100, dtype=np.int32)
    with pytest.raises(ValueError, match="the grid has 15360 elements, the parameter 15359"):
        pruned_section(indices, values[indices], 15359, 0.0, "levels", grid=grid)


@pytest.mark.parametrize("columns", [7, 2**20])
def test_rows_of_another_length_are_refused(columns):
    numel = 2**20
    values = np.random.default_rng(0).laplace(size=64).astype(np.float32)
    grid = Grid(np.zeros(2**10, np.uint8), np.zeros(2**10, np.uint8))
    indices = np.arange(64, dtype=np.int32)
    section = pruned_section(indices, values, numel, 0.0, "levels", grid=grid)
    section.payload[:4] = np.array([columns], "<u4").view(np.uint8)
    with pytest.raises(FrameError, match="section 0 block"):
        decode_frame(encode_frame([section]))


def forged(section, offset, new):
    payload = np.concatenate([section.payload, np.zeros(16, np.uint8)])[: section.payload.size]
    payload[offset : offset + len(new)] = np.frombuffer(new, np.uint8)
    return replace(section, payload=payload)


RUNS, CLASSES_OF_ROWS, STEP = 20, 22, 8
"""Where the number of runs of the rows, that of their classes, and the step are in a payload."""


@pytest.mark.parametrize(
    ("offset", "new"),
    [
        (RUNS, b"\0\0"),
        (RUNS, b"\xff\xff"),
        (CLASSES_OF_ROWS, b"\0"),
        (CLASSES_OF_ROWS, b"\x09"),
        (STEP, np.float32(np.nan).tobytes()),
        (STEP, np.float32(-1).tobytes()),
    ],
)
def test_settings_out_of_range_are_refused(offset, new):
    _, section = section_of(*graded()[:1], 0.1, graded()[1])
    with pytest.raises(FrameError):
        decode_frame(encode_frame([forged(section, offset, new)])).sections[0].survivors()


def test_more_members_or_survivors_than_there_are_is_refused():
    values, grid = graded()
    _, section = section_of(values, 0.1, grid)
    *_, parts = section.coding.open(section, "section")
    members = int(parts[3]) - section.payload.ctypes.data
    more = np.array([section.count + 1], "<u4").tobytes()
    with pytest.raises(FrameError, match="values"):
        forged(section, members, more).survivors()
    for count in (section.count - 1, section.count + 1, values.size):
        with pytest.raises(FrameError):
            replace(section, count=count).survivors()


def test_a_payload_that_is_cut_or_too_long_is_refused():
    values, grid = graded()
    _, section = section_of(values, 0.1, grid)
    *_, parts = section.coding.open(section, "section")
    cuts = {int(part) - section.payload.ctypes.data for part in parts}
    # The last bytes of the arithmetic code stand for other levels if some are missing.
    cuts |= {22, 30} | {cut + 4 for cut in cuts} | {section.payload.size - 20}
    for cut in cuts:
        with pytest.raises(FrameError):
            forged(replace(section, payload=section.payload[:cut]), 0, b"").survivors()
    longer = np.concatenate([section.payload, np.zeros(1, np.uint8)])
    with pytest.raises(FrameError):
        replace(section, payload=longer).survivors()


def test_a_side_that_is_too_long_for_classes_needs_none():
    numel = 2**17
    values = np.random.default_rng(0).laplace(size=numel).astype(np.float32)
    grid = Grid(np.zeros(numel, np.uint8), np.zeros(1, np.uint8))
    indices = np.flatnonzero(np.abs(values) > 2).astype(np.int32)
    section = pruned_section(indices, values[indices], numel, 2.0, "levels", grid=grid)
    assert section.kind is Kind.LEVELS


def test_other_bytes_in_the_levels_are_noticed_or_decode():
    values, grid = graded()
    _, section = section_of(values, 0.1, grid)
    untouched = section.payload.copy()
    numbers, noticed = np.random.default_rng(0), 0
    for _ in range(300):
        section.payload[:] = untouched
        section.payload[numbers.integers(20, untouched.size)] ^= 1 << numbers.integers(8)
        try:
            places, _ = section.survivors()
        except FrameError:
            noticed += 1
            continue
        assert (np.diff(places) > 0).all()
        assert 0 <= places[0] <= places[-1] < values.size
    assert noticed > 100
