"""All elements of a parameter as floats of a fixed width, without positions."""

from enum import IntEnum

from gradsieve.codec.coding import Floats, Section
from gradsieve.codec.errors import refuse
from gradsieve.codec.float_format import FloatFormat
from gradsieve.codec.whole import WholeCoding


class WholeFloats(WholeCoding):
    """The payload is the values of all elements, in the given format."""

    def __init__(self, kind: IntEnum, floats: FloatFormat) -> None:
        super().__init__(kind, is_exact=floats.is_exact)
        self.floats = floats

    def encode(self, values: Floats) -> Section:
        """Return a section of all elements, float32 [N], which may share their memory."""
        return Section(values.size, values.size, self, self.floats.to_bytes(values))

    def values(self, section: Section, name: str) -> Floats:
        return self.floats.from_bytes(section.payload)

    def check_size(self, section: Section, name: str) -> None:
        size, wanted = section.payload.size, section.count * self.floats.width
        if size != wanted:
            refuse(f"{name} bytes", f"{size}, where the values take {wanted}")
