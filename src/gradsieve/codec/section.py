"""What a frame carries of one parameter: settings and a payload."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gradsieve.codec.bfloat16 import from_bfloat16, to_bfloat16
from gradsieve.codec.errors import require
from gradsieve.codec.exact import encode_exact, open_exact
from gradsieve.codec.levels import encode_levels, open_levels, settle
from gradsieve.codec.planes import MOST_LOW_BITS, PLANES
from gradsieve.codec.quantizer import mean_excess_over
from gradsieve.codec.survivors import PARTS, add_survivors, read_survivors

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
SETTINGS = np.dtype([("block", "<u4"), ("threshold", "<f4")])
"""At the start of a pruned parameter's payload."""
LEVEL_SETTINGS = np.dtype([("step", "<f4"), ("first", "<f4"), ("rest", "<f4")])
"""Behind SETTINGS, for levels."""
SMALLEST_MEAN_EXCESS, LARGEST_MAGNITUDE = 1e-30, 1e35
"""Beyond, levels might leave float32's range; the values travel as they are."""
SHORTEST_BLOCK, LONGEST_ROW = 128, 4096
SLACK = 8
"""Bytes that must be readable behind a payload: readers take whole words."""


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
        return self.numel if self.whole else int(self._settings["block"])

    @property
    def threshold(self) -> float:
        return 0.0 if self.whole else float(self._settings["threshold"])

    @property
    def step(self) -> float:
        """Of the quantizer; 0 where values are not levels."""
        return float(self._level_settings["step"]) if self.kind is Kind.LEVELS else 0.0

    @property
    def _settings(self) -> np.void:
        settings: np.void = self.payload[: SETTINGS.itemsize].view(SETTINGS)[0]
        return settings

    @property
    def _level_settings(self) -> np.void:
        stop = SETTINGS.itemsize + LEVEL_SETTINGS.itemsize
        settings: np.void = self.payload[SETTINGS.itemsize : stop].view(LEVEL_SETTINGS)[0]
        return settings

    def add_to(self, total: Floats, factor: float, name: str = "section") -> None:
        """total += factor · what the section carries, one rounding for each of the two.

        Raises:
            FrameError: the payload makes no sense; `name` is in the message. Nothing outside
                `total` was touched.
        """
        scale = np.float32(factor)
        if self.whole:
            # What overflowed or was NaN on one rank is to be so on all.
            with np.errstate(over="ignore", invalid="ignore"):
                total += scale * self._raw_values(self.payload)
        elif self.count:
            counts, values, at, end = self.open(name)
            found = add_survivors(at, end, self.numel, self.block, counts, values, scale, total)
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
        counts, values, at, end = self.open(name)
        found = read_survivors(at, end, self.numel, self.block, counts, indices)
        require_decoded(found, name)
        return indices, values

    def open(self, name: str) -> tuple[NDArray[np.int32], Floats, int, int]:
        """The counts of the blocks, the values, the address of the positions and of the end.

        Raises:
            FrameError: the payload makes no sense.
        """
        start = self.payload.ctypes.data
        end = start + self.payload.size
        start += SETTINGS.itemsize
        if self.kind is Kind.LEVELS:
            own = self._level_settings
            found, values, counts, at = open_levels(
                start + LEVEL_SETTINGS.itemsize,
                end,
                self.count,
                self.numel,
                self.block,
                self.low_bits,
                self.planes,
                own["step"],
                own["first"],
                own["rest"],
            )
        else:
            size = VALUE_BYTES[self.kind]
            found, counts, values_at, at = open_exact(
                start, end, self.count, self.numel, self.block, size
            )
            require_decoded(found, name)
            first = values_at - self.payload.ctypes.data
            values = self._raw_values(self.payload[first : first + size * self.count])
        require_decoded(found, name)
        return counts, values, at, end

    def _raw_values(self, raw: NDArray[np.uint8]) -> Floats:
        if VALUE_BYTES[self.kind] == 2:
            return from_bfloat16(np.frombuffer(raw, "<i2").astype(np.int16))
        # A copy: payloads start anywhere, compiled loops want aligned numbers.
        return np.frombuffer(raw, "<f4").astype(np.float32)


def whole_section(values: Floats, mode: Values) -> Section:
    """All elements of a parameter, as float32 where that is the mode, else as bfloat16."""
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

    Args:
        indices: ascending, each in 0 .. numel - 1.
        values: of the survivors, magnitudes of `threshold` or more.
        row: elements that lie together in the parameter (a row, a filter): blocks that may have a
            count of their own are a row or several. 0 where it is not known.
        finite: no value is NaN or infinite; others travel exactly whatever the mode.
        residual: float32 [numel], 0 at `indices`; gets what the section does not carry.
    """
    threshold = float(np.float32(threshold))
    if not indices.size:
        return empty_section(numel, threshold)
    settings = settings_of(numel, threshold)
    smallest = smallest_block(row)
    if mode == "levels" and finite:
        excess = mean_excess_over(np.float32(threshold), values)
        if SMALLEST_MEAN_EXCESS < excess < LARGEST_MAGNITUDE > threshold:
            payload, settings["block"], low_bits, planes, error, *own = encode_levels(
                indices, values, numel, smallest, threshold, excess, residual
            )
            levels = np.array([tuple(own)], LEVEL_SETTINGS)
            payload = joined(settings, levels, payload)
            return Section(numel, indices.size, Kind.LEVELS, payload, low_bits, planes, error)
    error = 0.0
    if mode == "bfloat16" and finite:
        halves = to_bfloat16(values)
        if residual is not None:
            error = settle(indices, values, from_bfloat16(halves), residual)
        raw, kind = halves.astype("<i2", copy=False).view(np.uint8), Kind.BFLOAT16
    else:
        raw, kind = values.astype("<f4", copy=False).view(np.uint8), Kind.FLOAT32
    payload, settings["block"] = encode_exact(indices, raw, numel, smallest)
    payload = joined(settings, payload)
    return Section(numel, indices.size, kind, payload, squared_remainder=error)


def empty_section(numel: int, threshold: float = 0.0) -> Section:
    """A pruned parameter of which nothing is sent."""
    return Section(numel, 0, Kind.FLOAT32, joined(settings_of(numel, threshold)))


def settings_of(numel: int, threshold: float) -> NDArray[np.void]:
    settings = np.zeros(1, SETTINGS)
    settings["block"], settings["threshold"] = max(numel, 1), threshold
    return settings


def joined(*parts: NDArray[np.generic]) -> NDArray[np.uint8]:
    """One array of all parts' bytes, with readable bytes behind it."""
    raw = [part.view(np.uint8) for part in parts]
    size = sum(part.size for part in raw)
    together = np.empty(size + SLACK, np.uint8)
    together[size:] = 0
    return np.concatenate(raw, out=together[:size])


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
    require(not found, f"{name} {PARTS[found]}", "do not decode")


def require_section(section: Section, name: str) -> None:
    """Raise FrameError where a section's settings are out of their ranges.

    What they announce is bounded by the bytes that are there, so that nothing larger is allocated
    than a few times the frame.
    """
    numel, count, size = section.numel, section.count, section.payload.size
    require(numel < 2**31, f"{name} numel", f"{numel} is more than int32 indices can name")
    levels = section.kind is Kind.LEVELS
    require(
        levels or section.low_bits == section.planes == 0,
        f"{name} levels",
        f"{section.low_bits} low bits and {section.planes} planes, where there are no levels",
    )
    if section.whole:
        require(count == numel, f"{name} count", f"{count} of {numel} elements of a whole one")
        wanted = count * VALUE_BYTES[section.kind]
        require(size == wanted, f"{name} bytes", f"{size}, where the values take {wanted}")
        return
    require(count <= numel, f"{name} count", f"{count} survivors of {numel} elements")
    require(count <= 8 * size, f"{name} count", f"{count} survivors do not fit {size} bytes")
    least = SETTINGS.itemsize + (LEVEL_SETTINGS.itemsize if levels else 0)
    require(size >= least, f"{name} bytes", f"{size} are fewer than the settings' {least}")
    require(count or size == least, f"{name} bytes", f"{size} for no survivors")
    block, threshold = section.block, section.threshold
    require(1 <= block <= max(numel, 1), f"{name} block", f"{block} of {numel} elements")
    require(threshold >= 0, f"{name} threshold", f"{threshold} is negative or NaN")
    if not levels:
        return
    require(section.low_bits <= MOST_LOW_BITS, f"{name} low bits", f"{section.low_bits}")
    require(section.planes <= PLANES, f"{name} planes", f"{section.planes}")
    for field in ("step", "first", "rest"):
        number = float(section._level_settings[field])
        require(0 <= number < np.inf, f"{name} {field}", f"{number} is no finite magnitude")
