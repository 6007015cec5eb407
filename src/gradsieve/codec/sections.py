"""What a frame carries of one parameter: settings and a payload."""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gradsieve.arrays import FLOAT32, INT32, UINT8, require_array, require_target
from gradsieve.codec.bfloat16 import from_bfloat16, to_bfloat16
from gradsieve.codec.errors import refuse
from gradsieve.codec.exact import encode_exact, open_exact
from gradsieve.codec.levels import add_levels, encode_levels, open_levels, settle
from gradsieve.codec.planes import MOST_LOW_BITS, PLANES
from gradsieve.codec.settings import LEVEL_SETTINGS, SETTINGS
from gradsieve.codec.survivors import PARTS, add_survivors, ascend, read_survivors

Floats = NDArray[np.float32]
Values = Literal["levels", "float32", "bfloat16"]
"""How values travel."""
VALUES = get_args(Values)


class Kind(IntEnum):
    """What a section's payload is."""

    WHOLE_FLOAT32 = 0
    WHOLE_BFLOAT16 = 1
    FLOAT32 = 2
    BFLOAT16 = 3
    LEVELS = 4


WHOLE = (Kind.WHOLE_FLOAT32, Kind.WHOLE_BFLOAT16)
VALUE_BYTES = {
    Kind.WHOLE_FLOAT32: 4,
    Kind.WHOLE_BFLOAT16: 2,
    Kind.FLOAT32: 4,
    Kind.BFLOAT16: 2,
}
SHORTEST_BLOCK, LONGEST_ROW = 128, 4096
SLACK = 8
"""Bytes that must be readable behind a payload: readers take whole words, also from its end."""


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """One parameter in a frame; SLACK bytes behind the payload must be readable."""

    numel: int
    count: int
    """Survivors; all elements where the parameter travels whole."""
    kind: Kind
    payload: NDArray[np.uint8]
    low_bits: int = 0
    planes: int = 0
    squared_remainder: float = 0.0
    """Known to the encoder: the sum of squares of what the payload lacks of finite values."""

    @property
    def whole(self) -> bool:
        return self.kind in WHOLE

    @property
    def block(self) -> int:
        """Elements of a block that has a count of its own."""
        return self.numel if self.whole else int(SETTINGS.unpack_from(self.payload.data)[0])

    @property
    def threshold(self) -> float:
        return 0.0 if self.whole else float(SETTINGS.unpack_from(self.payload.data)[1])

    @property
    def step(self) -> float:
        """Of the quantizer; 0 where values are not levels."""
        return self.quantizer[0]

    @property
    def quantizer(self) -> tuple[float, float, float]:
        """Its step, the reconstruction of level 0, and what step · level is added to above."""
        if self.kind is not Kind.LEVELS:
            return 0.0, 0.0, 0.0
        step, first, rest = LEVEL_SETTINGS.unpack_from(self.payload.data, SETTINGS.size)
        return step, first, rest

    def add_to(self, total: Floats, factor: float, name: str = "section") -> None:
        """total += factor · what the section carries, one rounding for each of the two.

        Raises:
            FrameError: the payload makes no sense; `name` is in the message. Nothing outside
                `total` was touched.
            TypeError: `total` is not float32.
            ValueError: `total` does not have `numel` elements, is not contiguous or read-only.
        """
        require_target(f"what {name} is added to", total, FLOAT32, self.numel)
        require_array(f"{name}'s payload", self.payload, UINT8)
        scale = np.float32(factor)
        if self.whole:
            # What overflowed or was NaN on one rank is to be so on all.
            with np.errstate(over="ignore", invalid="ignore"):
                total += scale * self._raw_values(self.payload)
        elif self.kind is Kind.LEVELS:
            found = add_levels(
                self.payload, self.count, self.numel, self.low_bits, self.planes, scale, total
            )
            require_decoded(found, name)
        elif self.count:
            counts, values, at = self.open(name)
            found = add_survivors(self.payload, at, self.numel, counts, values, scale, total)
            require_decoded(found, name)

    def survivors(self, name: str = "section") -> tuple[NDArray[np.int32], Floats]:
        """Indices and values, in arrays of their own.

        Raises:
            FrameError: the payload makes no sense.
        """
        if self.whole:
            return np.arange(self.numel, dtype=np.int32), self._raw_values(self.payload)
        indices = np.empty(self.count, np.int32)
        if not self.count:
            return indices, np.empty(0, np.float32)
        counts, values, at = self.open(name)
        found = read_survivors(self.payload, at, self.numel, counts, indices)
        require_decoded(found, name)
        return indices, values

    def open(self, name: str) -> tuple[NDArray[np.int32], Floats, int]:
        """The counts of the blocks, the values, and the address of the positions.

        Raises:
            FrameError: the payload makes no sense.
        """
        require_array(f"{name}'s payload", self.payload, UINT8)
        if self.kind is Kind.LEVELS:
            found, counts, values, at = open_levels(
                self.payload, self.count, self.numel, self.low_bits, self.planes
            )
        else:
            found, counts, raw, at = open_exact(
                self.payload, self.count, self.numel, VALUE_BYTES[self.kind]
            )
            values = self._raw_values(raw)
        require_decoded(found, name)
        return counts, values, at

    def _raw_values(self, raw: NDArray[np.uint8]) -> Floats:
        if VALUE_BYTES[self.kind] == 2:
            values: Floats = from_bfloat16(np.frombuffer(raw, "<i2").astype(np.int16))
            return values
        # A copy: payloads start anywhere, compiled loops want aligned numbers.
        return np.frombuffer(raw, "<f4").astype(np.float32)


def whole_section(values: Floats, mode: Values) -> Section:
    """All elements of a parameter, as float32 where that is the mode, else as bfloat16.

    Raises:
        TypeError: the values are not float32.
        ValueError: they do not lie in one row.
    """
    require_array("values", values, FLOAT32)
    if mode == "float32":
        raw = values.astype("<f4", copy=False)
        return Section(values.size, values.size, Kind.WHOLE_FLOAT32, raw.view(np.uint8))
    halves = to_bfloat16(values).astype("<i2", copy=False)
    return Section(values.size, values.size, Kind.WHOLE_BFLOAT16, halves.view(np.uint8))


def pruned_section(
    indices: NDArray[np.int32],
    values: Floats,
    numel: int,
    threshold: float,
    mode: Values,
    *,
    row: int = 0,
    finite: bool = True,
    residual: Floats | None = None,
) -> Section:
    """A parameter's survivors.

    What the values and the residual hold is not checked here; `gradsieve.encode` does.

    Args:
        indices: int32, ascending, each in 0 .. numel - 1.
        values: of the survivors, magnitudes of `threshold` or more; not in the residual's memory.
        row: elements that lie together in the parameter (a row, a filter): blocks that may have a
            count of their own are a row or several. 0 where it is not known.
        finite: no value is NaN or infinite; others travel exactly whatever the mode.
        residual: float32 [numel], 0 at `indices`; gets what the section does not carry.

    Raises:
        TypeError: arrays of other dtypes.
        ValueError: sizes that do not fit, strides, or indices that do not ascend below `numel`.
    """
    dead_zone, smallest, count = np.float32(threshold), smallest_block(row), indices.size
    require_array("indices", indices, INT32)
    require_array("values", values, FLOAT32, count)
    if residual is not None:
        require_target("the residual", residual, FLOAT32, numel)
    if not count:
        return empty_section(numel, threshold)
    if not ascend(indices, numel):
        raise ValueError(f"indices must ascend strictly within 0..{numel - 1}")
    if mode == "levels" and finite:
        payload, low_bits, planes, error = encode_levels(
            indices, values, numel, smallest, dead_zone, residual
        )
        if payload.size:
            return Section(numel, count, Kind.LEVELS, payload, low_bits, planes, error)
    error = 0.0
    if mode == "bfloat16" and finite:
        halves = to_bfloat16(values)
        if residual is not None:
            error = settle(indices, values, from_bfloat16(halves), residual)
        raw, kind = halves.astype("<i2", copy=False).view(np.uint8), Kind.BFLOAT16
    else:
        raw, kind = values.astype("<f4", copy=False).view(np.uint8), Kind.FLOAT32
    payload = encode_exact(indices, raw, numel, smallest, dead_zone)
    return Section(numel, count, kind, payload, squared_remainder=error)


def empty_section(numel: int, threshold: float = 0.0) -> Section:
    """A pruned parameter of which nothing is sent."""
    payload = np.zeros(SETTINGS.size + SLACK, np.uint8)
    SETTINGS.pack_into(payload.data, 0, max(numel, 1), threshold)
    return Section(numel, 0, Kind.FLOAT32, payload[: SETTINGS.size])


def smallest_block(row: int) -> int:
    """A row, or a few, or an even part of one."""
    block = row or SHORTEST_BLOCK
    while block < SHORTEST_BLOCK:
        block *= 2
    while block > LONGEST_ROW:
        block = -(-block // 2)
    return block


def require_decoded(found: int, name: str) -> None:
    """Raise FrameError where a compiled reader found what makes no sense."""
    if found:
        refuse(f"{name} {PARTS[found]}", "do not decode")


def require_section(section: Section, name: str) -> None:
    """Raise FrameError where a section's settings are out of their ranges.

    What they announce is bounded by the bytes that are there, so that nothing larger is allocated
    than a few times the frame.
    """
    numel, count, size = section.numel, section.count, section.payload.size
    levels = section.kind is Kind.LEVELS
    if numel >= 2**31:
        refuse(f"{name} numel", f"{numel} is more than int32 indices can name")
    if not levels and (section.low_bits or section.planes):
        found = f"{section.low_bits} low bits and {section.planes} planes"
        refuse(f"{name} levels", f"{found}, where there are no levels")
    if section.whole:
        require_whole(section, name)
        return
    if count > numel:
        refuse(f"{name} count", f"{count} survivors of {numel} elements")
    if count > 8 * size:
        refuse(f"{name} count", f"{count} survivors do not fit {size} bytes")
    least = SETTINGS.size + (LEVEL_SETTINGS.size if levels else 0)
    if size < least:
        refuse(f"{name} bytes", f"{size} are fewer than the settings' {least}")
    if count == 0 and (levels or size != least):
        refuse(f"{name} bytes", f"{size} for no survivors")
    block, threshold = SETTINGS.unpack_from(section.payload.data)
    if not 1 <= block <= max(numel, 1):
        refuse(f"{name} block", f"{block} of {numel} elements")
    if not threshold >= 0:
        refuse(f"{name} threshold", f"{threshold} is negative or NaN")
    if levels:
        require_levels(section, name)


def require_whole(section: Section, name: str) -> None:
    if section.count != section.numel:
        refuse(f"{name} count", f"{section.count} of {section.numel} elements of a whole one")
    size, wanted = section.payload.size, section.count * VALUE_BYTES[section.kind]
    if size != wanted:
        refuse(f"{name} bytes", f"{size}, where the values take {wanted}")


def require_levels(section: Section, name: str) -> None:
    if section.low_bits > MOST_LOW_BITS:
        refuse(f"{name} low bits", f"{section.low_bits}, more than {MOST_LOW_BITS}")
    if section.planes > PLANES:
        refuse(f"{name} planes", f"{section.planes}, more than {PLANES}")
    for field, number in zip(("step", "first", "rest"), section.quantizer, strict=True):
        if not 0 <= number < math.inf:
            refuse(f"{name} {field}", f"{number} is no finite magnitude")
