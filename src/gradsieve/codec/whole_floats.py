"""All elements of a parameter as floats of a fixed width, without positions."""

from enum import IntEnum

import numpy as np

from gradsieve.codec.coding import Coding, Floats, Indices, PayloadBytes, Section
from gradsieve.codec.errors import refuse
from gradsieve.codec.float_format import FloatFormat


class WholeFloats(Coding):
    """The payload is the values of all elements, in the given format."""

    whole = True

    def __init__(self, kind: IntEnum, floats: FloatFormat) -> None:
        super().__init__(kind, is_exact=floats.is_exact)
        self.floats = floats

    def encode(self, values: Floats) -> Section:
        """Return a section of all elements, float32 [N], which may share their memory."""
        return Section(values.size, values.size, self, self.floats.to_bytes(values))

    def add(self, section: Section, total: Floats, factor: np.float32, name: str) -> None:
        # What overflowed or was NaN on one rank must be so on all.
        with np.errstate(over="ignore", invalid="ignore"):
            total += factor * self.floats.from_bytes(section.payload)

    def survivors(self, section: Section, name: str) -> tuple[Indices, Floats]:
        indices = np.arange(section.numel, dtype=np.int32)
        return indices, self.floats.from_bytes(section.payload)

    def payload_bytes(self, section: Section, name: str) -> PayloadBytes:
        return PayloadBytes(settings=0, counts=0, positions=0, signs=0, values=section.payload.size)

    def check_payload(self, section: Section, name: str) -> None:
        if section.count != section.numel:
            refuse(f"{name} count", f"{section.count} of {section.numel} elements of a whole one")
        size, wanted = section.payload.size, section.count * self.floats.width
        if size != wanted:
            refuse(f"{name} bytes", f"{size}, where the values take {wanted}")
