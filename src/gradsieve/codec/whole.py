"""Codings of all elements of a parameter, which need no positions."""

from abc import abstractmethod

import numpy as np

from gradsieve.codec.coding import Coding, Floats, Indices, PayloadBytes, Section
from gradsieve.codec.errors import refuse


class WholeCoding(Coding):
    """A coding whose payload is nothing but the values of all elements."""

    whole = True

    @abstractmethod
    def encode(self, values: Floats) -> Section | None:
        """Return a section of all elements, float32 [N], or None where it cannot carry them."""

    @abstractmethod
    def values(self, section: Section, name: str) -> Floats:
        """Return the values, float32 [numel]. Raises FrameError where the payload is damaged."""

    @abstractmethod
    def check_size(self, section: Section, name: str) -> None:
        """Raise FrameError where the payload has too few bytes or too many."""

    def add(self, section: Section, total: Floats, factor: np.float32, name: str) -> None:
        # What overflowed or was NaN on one rank must be so on all.
        with np.errstate(over="ignore", invalid="ignore"):
            total += factor * self.values(section, name)

    def survivors(self, section: Section, name: str) -> tuple[Indices, Floats]:
        return np.arange(section.numel, dtype=np.int32), self.values(section, name)

    def payload_bytes(self, section: Section, name: str) -> PayloadBytes:
        return PayloadBytes(settings=0, counts=0, positions=0, signs=0, values=section.payload.size)

    def check_payload(self, section: Section, name: str) -> None:
        if section.count != section.numel:
            refuse(f"{name} count", f"{section.count} of {section.numel} elements of a whole one")
        self.check_size(section, name)
