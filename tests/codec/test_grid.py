"""Places in a grid: every element has one, and larger classes come first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsieve.codec.grid import (
    CLASSES,
    Grid,
    find_survivors,
    place_survivors,
    read_side,
    runs_of,
    side_room,
    sizes_of,
    write_side,
)

classes = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=40).map(
    lambda numbers: np.array(numbers, np.uint8)
)


@settings(deadline=None, max_examples=200)
@given(rows=classes, columns=classes, share=st.floats(0, 1))
def test_places_lead_back_to_their_elements(rows, columns, share):
    numel = rows.size * columns.size
    indices = np.flatnonzero(np.random.default_rng(0).random(numel) <= share).astype(np.int32)
    edges = sizes_of(rows, columns)
    places, order, counts = place_survivors(indices, rows, columns, edges)
    expected = (rows[:, None].astype(int) + columns).reshape(-1)
    assert edges[-1] == numel
    assert (np.diff(places) > 0).all()
    np.testing.assert_array_equal(np.sort(order), np.arange(indices.size))
    np.testing.assert_array_equal(counts, np.bincount(expected[indices], minlength=counts.size))
    # In each class elements are numbered in their order in the matrix.
    numbered = np.argsort(expected, kind="stable")
    np.testing.assert_array_equal(numbered[places], indices[order])
    find_survivors(places, counts, rows, columns, edges)
    np.testing.assert_array_equal(places, indices[order])


@settings(deadline=None, max_examples=50)
@given(rows=classes, columns=classes)
def test_nothing_is_read_or_written_behind_an_array(rows, columns):
    """As Python, where numpy notices it."""
    indices = np.arange(rows.size * columns.size, dtype=np.int32)
    edges = sizes_of(rows, columns)
    places, order, counts = place_survivors.py_func(indices, rows, columns, edges)
    np.testing.assert_array_equal(places, indices)
    found = places.copy()
    find_survivors.py_func(found, counts, rows.astype(int), columns.astype(int), edges)
    np.testing.assert_array_equal(found, order)


@settings(deadline=None, max_examples=200)
@given(lines=classes, cut=st.integers(0, 60))
def test_the_classes_of_a_side_come_back_and_a_damaged_side_is_noticed(lines, cut):
    counts = runs_of(lines)
    data = np.zeros(side_room(counts) + 8, np.uint8)
    start = data.ctypes.data
    end = write_side(counts, start)
    assert end - start <= data.size
    found, behind = read_side(start, end, lines.size)
    assert behind == end
    np.testing.assert_array_equal(found, lines)
    if cut and start + cut < end:
        assert read_side(start, start + cut, lines.size)[1] == 0
    _, other = read_side(start, end, lines.size + 1)
    assert other == 0 or counts.size == 1


def test_a_class_is_half_the_magnitude():
    squares = np.array([16.0, 15.9, 4.0, 1.0, 1e-30, 0.0], np.float32)
    grid = Grid.of_squares(squares, squares[:1])
    assert grid.rows.tolist() == [0, 0, 1, 2, CLASSES - 1, CLASSES - 1]
    assert grid.columns.tolist() == [0]


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_side_of_which_nothing_is_known_is_one_class(bad):
    grid = Grid.of_squares(np.full(5, bad, np.float32), np.ones(3, np.float32))
    assert set(grid.rows) == {CLASSES - 1}


def test_a_piece_of_whole_rows_has_a_grid_and_others_have_none():
    grid = Grid(np.array([0, 1, 2], np.uint8), np.array([0, 3], np.uint8))
    piece = grid.of_piece(2, 6)
    assert piece is not None
    assert (piece.rows.tolist(), piece.columns.tolist()) == ([1, 2], [0, 3])
    assert grid.of_piece(1, 6) is None
    assert grid.of_piece(2, 5) is None
