"""Sections of frames, made from a parameter's values by the coding that the user has chosen."""

import numpy as np

from gradsieve.codec.coding import SLACK, Floats, Indices, Section
from gradsieve.codec.codings import EXACT, ROUNDED_WHOLE, VALUE_CODINGS, Values
from gradsieve.codec.grid import Grid
from gradsieve.codec.settings import SETTINGS
from gradsieve.codec.survivors import ascend
from gradsieve.runtime.arrays import FLOAT32, INT32, require_array, require_target

SHORTEST_BLOCK, LONGEST_ROW = 128, 4096
FEWEST_BY_SIZE = 32
"""The survivors from which it pays to say how large elements are expected to be."""


def whole_section(values: Floats, mode: Values) -> Section:
    """Return a section of all elements of a parameter.

    Args:
        values: float32 [numel]. The section may share their memory.
        mode: "float32" sends them exactly, and "bfloat16" rounds them. "levels" rounds them to
            powers of two, or as "bfloat16" where that cannot carry them.

    Raises:
        TypeError: the values are no array of float32.
        ValueError: the values have several dimensions or are not contiguous.
    """
    require_array("values", values, FLOAT32)
    section = VALUE_CODINGS[mode].whole.encode(values)
    return ROUNDED_WHOLE.encode(values) if section is None else section


def pruned_section(
    indices: Indices,
    values: Floats,
    numel: int,
    threshold: float,
    mode: Values,
    *,
    row: int = 0,
    finite: bool = True,
    residual: Floats | None = None,
    grid: Grid | None = None,
) -> Section:
    """Return a section of a parameter's survivors.

    What the values and the residual hold is not checked here; `gradsieve.encode` does.

    Args:
        indices: int32 [survivors], ascending, each in 0 .. numel - 1.
        values: float32 [survivors], magnitudes of `threshold` or more. They must not share memory
            with the residual.
        mode: how values travel.
        row: the number of elements of a row or filter of the parameter. A row, or several, may
            have a count of survivors of its own. 0 where it is not known.
        finite: whether no value is NaN or infinite. Others travel exactly in any mode.
        residual: float32 [numel], 0 at `indices`. What the section does not carry is written
            there.
        grid: the sizes that are expected of the elements, for "levels"; None where nothing is
            known of them.

    Raises:
        TypeError: an array has another dtype.
        ValueError: sizes do not fit, an array is not contiguous, or the indices do not ascend
            below `numel`.
    """
    require_array("indices", indices, INT32)
    require_array("values", values, FLOAT32, indices.size)
    if residual is not None:
        require_target("the residual", residual, FLOAT32, numel)
    if not indices.size:
        return empty_section(numel, threshold)
    if not ascend(indices, numel):
        raise ValueError(f"indices must ascend strictly within 0..{numel - 1}")
    if grid is not None and grid.numel != numel:
        raise ValueError(f"the grid has {grid.numel} elements, the parameter {numel}")
    by_size = VALUE_CODINGS[mode].by_size
    if grid is not None and by_size is not None and finite and indices.size >= FEWEST_BY_SIZE:
        section = by_size.encode(indices, values, grid, np.float32(threshold), residual)
        if section is not None:
            return section
    parameter = indices, values, numel, smallest_block(row), np.float32(threshold), residual
    section = VALUE_CODINGS[mode].pruned.encode(*parameter) if finite else None
    return EXACT.encode(*parameter) if section is None else section


def empty_section(numel: int, threshold: float = 0.0) -> Section:
    """Return a section of a pruned parameter that sends nothing."""
    payload = np.zeros(SETTINGS.size + SLACK, np.uint8)
    SETTINGS.pack_into(payload.data, 0, max(numel, 1), threshold)
    return Section(numel, 0, EXACT, payload[: SETTINGS.size])


def smallest_block(row: int) -> int:
    """Return the fewest elements that may share a count: a row, a few, or an even part of one."""
    block = row or SHORTEST_BLOCK
    while block < SHORTEST_BLOCK:
        block *= 2
    while block > LONGEST_ROW:
        block = -(-block // 2)
    return block
