"""Survivors as quantized levels, ordered by the size that is expected of them."""

import numpy as np
from numpy.typing import NDArray

from gradsieve.codec.add import add_at
from gradsieve.codec.bits import STORE_REACH, float_bits, load_float
from gradsieve.codec.blocks import set_room, write_counts
from gradsieve.codec.coding import Floats, Indices, PayloadBytes, Section
from gradsieve.codec.errors import refuse
from gradsieve.codec.grid import (
    Grid,
    find_survivors,
    place_survivors,
    read_side,
    runs_of,
    side_room,
    sizes_of,
    write_side,
)
from gradsieve.codec.level_stream import (
    HIGHEST,
    levels_room,
    members_of,
    read_class_counts,
    read_levels,
    write_levels,
)
from gradsieve.codec.levels import (
    QUANTIZER,
    QUANTIZER_BYTES,
    apply_signs,
    check_quantizer,
    chosen_step,
    copy_signs,
    step_of,
    write_signs,
)
from gradsieve.codec.positions import (
    behind_last,
    read_some,
    start_reading,
    write_positions,
    write_rest,
)
from gradsieve.codec.pruned import PrunedCoding, require_decoded
from gradsieve.codec.quantizer import quantize, reconstruct
from gradsieve.codec.settings import SETTINGS, SETTINGS_BYTES, read_block, write_settings
from gradsieve.codec.survivors import (
    BAD_BLOCKS,
    BAD_GRID,
    BAD_POSITIONS,
    BAD_VALUES,
    GOOD,
    settle,
)
from gradsieve.runtime.arrays import UINT8, require_array
from gradsieve.runtime.compiled import compiled

UINT = np.uint64
LONGEST_SIDE = 2**16
"""The most rows or columns."""
PARTS_FOUND = 4
"""The addresses that a reader finds: of the counts, the positions, the signs and the levels."""


Addresses = NDArray[np.int64]


class SizedLevels(PrunedCoding):
    """Each survivor's level and its sign, both ordered by a `Grid`.

    Positions are coded class by class, and levels with probabilities that follow the classes.
    """

    settings_bytes = SETTINGS.size + QUANTIZER.size

    def encode(
        self,
        indices: Indices,
        values: Floats,
        grid: Grid,
        threshold: np.float32,
        residual: Floats | None,
    ) -> Section | None:
        """Return what `BlockedCoding.encode` does; blocks are those of the grid."""
        if max(grid.rows.size, grid.columns.size) > LONGEST_SIDE:
            return None
        payload, squared_remainder = encode_sized(
            indices, values, grid.rows, grid.columns, threshold, residual
        )
        if not payload.size:
            return None
        return Section(grid.numel, indices.size, self, payload, squared_remainder=squared_remainder)

    def add(self, section: Section, total: Floats, factor: np.float32, name: str) -> None:
        indices, values, _ = self.open(section, name)
        add_at(total, indices, values, factor)

    def survivors(self, section: Section, name: str) -> tuple[Indices, Floats]:
        indices, values, _ = self.open(section, name)
        order = np.argsort(indices)
        return indices[order], values[order]

    def open(self, section: Section, name: str) -> tuple[Indices, Floats, Addresses]:
        """Return indices and values, class by class, and the addresses of the payload's parts.

        Raises:
            FrameError: the payload is damaged.
        """
        require_array(f"{name}'s payload", section.payload, UINT8)
        damaged, indices, values, parts = open_sized(section.payload, section.count, section.numel)
        require_decoded(damaged, name)
        return indices, values, parts

    def payload_bytes(self, section: Section, name: str) -> PayloadBytes:
        *_, parts = self.open(section, name)
        at = [int(part) - section.payload.ctypes.data for part in parts]
        counts, positions, signs, values = at
        return PayloadBytes(
            counts,
            positions - counts,
            signs - positions,
            values - signs,
            section.payload.size - values,
        )

    def check_payload(self, section: Section, name: str) -> None:
        super().check_payload(section, name)
        rows, rest = divmod(section.numel, self.block(section))
        if rest:
            refuse(
                f"{name} block", f"{section.numel} elements are no rows of {self.block(section)}"
            )
        if max(rows, self.block(section)) > LONGEST_SIDE:
            refuse(f"{name} block", f"a side of {rows} × {self.block(section)} is too long")
        check_quantizer(section, name)

    def step(self, section: Section) -> float:
        return step_of(section)


@compiled
def encode_sized(indices, values, rows, columns, threshold, residual):  # type: ignore[no-untyped-def]
    """Write a payload.

    rows, columns: the classes of a `Grid`; the other arguments are those of `encode_levels`.

    Returns:
        the payload (uint8, empty where levels might leave the range of float32), and the sum of
        squares of the error (0 without a residual).
    """
    nothing = np.empty(0, np.uint8)
    step, _ = chosen_step(values, threshold, rows.size * columns.size)
    if step == 0:
        return nothing, 0.0
    edges = sizes_of(rows, columns)
    places, order, counts = place_survivors(indices, rows, columns, edges)
    values = values[order]
    levels = np.empty(values.size, np.uint16)
    first, rest = quantize(values, threshold, step, HIGHEST, levels)
    members = members_of(levels, counts)
    in_rows, in_columns = runs_of(rows), runs_of(columns)
    room = SETTINGS_BYTES + QUANTIZER_BYTES + side_room(in_rows) + side_room(in_columns)
    room += set_room(edges, counts) + levels_room(counts, members)
    room += values.size // 8 + 4 * STORE_REACH
    payload = np.empty(room, np.uint8)
    start = payload.ctypes.data
    address = write_settings(columns.size, threshold, start)
    for number in (step, first, rest):
        address = write_rest(address, float_bits(number), 32)
    address = write_side(in_columns, write_side(in_rows, address))
    address = write_counts(counts, address)
    address = write_positions(places, edges, counts, address)
    address = write_signs(values, address)
    end = write_levels(levels, values, counts, members, address, start + room)
    if end == 0:
        return nothing, 0.0
    squared_remainder = 0.0
    if residual is not None:
        sent = np.empty(values.size, np.float32)
        reconstruct(levels, step, first, rest, sent)
        copy_signs(values, sent)
        for i in range(values.size):
            if levels[i] == HIGHEST:
                sent[i] = values[i]
        squared_remainder = settle(indices[order], values, sent, residual)
    return payload[: end - start], squared_remainder


@compiled
def open_sized(payload, count, numel):  # type: ignore[no-untyped-def]
    """Return which part is damaged, the indices, the values, and the parts' addresses."""
    start = payload.ctypes.data
    end = start + payload.size
    indices, values = np.empty(count, np.int32), np.empty(count, np.float32)
    parts = np.zeros(PARTS_FOUND, np.int64)
    width, at = read_block(start)
    step, first, rest = load_float(at), load_float(at + 4), load_float(at + 8)
    rows, at = read_side(at + QUANTIZER_BYTES, end, numel // width)
    if at == 0:
        return BAD_GRID, indices, values, parts
    columns, at = read_side(at, end, width)
    if at == 0:
        return BAD_GRID, indices, values, parts
    edges = sizes_of(rows, columns)
    parts[0] = at
    counts, at = read_class_counts(at, end, edges, count)
    if at == 0:
        return BAD_BLOCKS, indices, values, parts
    parts[1] = at
    state = start_reading(at, edges, counts)
    if not read_some(state, at, end, edges, counts, indices):
        return BAD_POSITIONS, indices, values, parts
    find_survivors(indices, counts, rows, columns, edges)
    parts[2] = behind_last(state)
    parts[3] = parts[2] + (count + 7) // 8
    if parts[3] > end:
        return BAD_VALUES, indices, values, parts
    levels, exact = np.empty(count, np.uint16), np.empty(count, np.float32)
    if not read_levels(parts[3], end, counts, levels, exact):
        return BAD_VALUES, indices, values, parts
    reconstruct(levels, step, first, rest, values)
    apply_signs(parts[2], values)
    for i in range(count):
        if levels[i] == HIGHEST:
            values[i] = exact[i]
    return GOOD, indices, values, parts
