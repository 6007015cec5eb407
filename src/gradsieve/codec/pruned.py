"""What all codings of survivors have in common: positions, and the settings before them."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from gradsieve.codec.blocks import read_counts
from gradsieve.codec.coding import Coding, Floats, Indices, PayloadBytes, Section
from gradsieve.codec.errors import refuse
from gradsieve.codec.settings import SETTINGS
from gradsieve.codec.survivors import PARTS, add_survivors, read_survivors
from gradsieve.runtime.arrays import UINT8, require_array


class PrunedCoding(Coding):
    """A coding of the survivors of a pruned parameter.

    The payload begins with the settings that all such codings share (see `settings`), then those
    of the coding itself.
    """

    whole = False
    settings_bytes: ClassVar[int] = SETTINGS.size
    """The size of all settings at the start of the payload."""
    may_be_empty: ClassVar[bool] = False
    """Whether a section may have no survivors."""

    def check_payload(self, section: Section, name: str) -> None:
        numel, count, size = section.numel, section.count, section.payload.size
        if count > numel:
            refuse(f"{name} count", f"{count} survivors of {numel} elements")
        if count > 8 * size:
            refuse(f"{name} count", f"{count} survivors do not fit {size} bytes")
        least = self.settings_bytes
        if size < least:
            refuse(f"{name} bytes", f"{size} are fewer than the settings' {least}")
        if count == 0 and not (self.may_be_empty and size == least):
            refuse(f"{name} bytes", f"{size} for no survivors")
        block, threshold = SETTINGS.unpack_from(section.payload.data)
        if not 1 <= block <= max(numel, 1):
            refuse(f"{name} block", f"{block} of {numel} elements")
        if not threshold >= 0:
            refuse(f"{name} threshold", f"{threshold} is negative or NaN")

    def block(self, section: Section) -> int:
        return int(SETTINGS.unpack_from(section.payload.data)[0])

    def threshold(self, section: Section) -> float:
        return float(SETTINGS.unpack_from(section.payload.data)[1])


class BlockedCoding(PrunedCoding):
    """A coding that cuts a parameter into blocks of equal length.

    The counts of the blocks follow the settings. The payload ends with the positions, and the
    values are between the two.
    """

    @abstractmethod
    def encode(
        self,
        indices: Indices,
        values: Floats,
        numel: int,
        smallest_block: int,
        threshold: np.float32,
        residual: Floats | None,
    ) -> Section | None:
        """Return the section of a parameter's survivors.

        Args:
            indices: int32 [survivors], one or more, ascending below `numel`.
            values: float32 [survivors], magnitudes of `threshold` or more, and finite unless the
                coding is exact. They do not share memory with the residual.
            smallest_block: the fewest elements that may have a count of their own.
            residual: float32 [numel]. Its elements at `indices` are set to what the section does
                not carry; an exact coding leaves them as they are, which is 0.

        Returns:
            None, with the residual unchanged, where the coding cannot carry such values.
        """

    @abstractmethod
    def read_values(self, section: Section) -> tuple[int, Indices, Floats, int]:
        """Decode all of a payload but the positions.

        Returns:
            a number from `survivors` that says which part is damaged, GOOD for none; the counts
            of the blocks (int32); the values (float32 [count]); the address of the positions.
        """

    def open(self, section: Section, name: str) -> tuple[Indices, Floats, int]:
        """Return the counts of the blocks, the values, and the address of the positions.

        Raises:
            FrameError: the payload is damaged.
        """
        require_array(f"{name}'s payload", section.payload, UINT8)
        damaged, counts, values, at = self.read_values(section)
        require_decoded(damaged, name)
        return counts, values, at

    def add(self, section: Section, total: Floats, factor: np.float32, name: str) -> None:
        if not section.count:
            return
        counts, values, at = self.open(section, name)
        damaged = add_survivors(section.payload, at, section.numel, counts, values, factor, total)
        require_decoded(damaged, name)

    def survivors(self, section: Section, name: str) -> tuple[Indices, Floats]:
        indices = np.empty(section.count, np.int32)
        if not section.count:
            return indices, np.empty(0, np.float32)
        counts, values, at = self.open(section, name)
        damaged = read_survivors(section.payload, at, section.numel, counts, indices)
        require_decoded(damaged, name)
        return indices, values

    def payload_bytes(self, section: Section, name: str) -> PayloadBytes:
        settings, signs, size = self.settings_bytes, self.sign_bytes(section), section.payload.size
        if not section.count:
            return PayloadBytes(settings, 0, 0, signs, size - settings - signs)
        start = section.payload.ctypes.data
        *_, positions_at = self.open(section, name)
        counts_at, end = start + settings, start + size
        _, values_at = read_counts(
            counts_at, end, section.numel, self.block(section), section.count
        )
        values = positions_at - values_at - signs
        return PayloadBytes(settings, values_at - counts_at, end - positions_at, signs, values)

    def sign_bytes(self, section: Section) -> int:
        """Return the size of the signs, or 0 where they are part of the values."""
        return 0


def require_decoded(damaged: int, name: str) -> None:
    """Raise FrameError where a compiled reader has found a damaged part."""
    if damaged:
        refuse(f"{name} {PARTS[damaged]}", "do not decode")
