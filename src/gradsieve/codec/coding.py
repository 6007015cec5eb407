"""The interface of a coding, and the section of a frame that it writes and reads.

A coding decides how one parameter's values become a payload. It is the only part of the package
that knows the bytes of that payload: a frame, `inspect` and the training loop ask the coding.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradsieve.codec.errors import refuse
from gradsieve.runtime.arrays import FLOAT32, UINT8, require_array, require_target

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]
SLACK = 8
"""The bytes that must be readable behind a payload, since readers load whole words at its end."""


class PayloadBytes(NamedTuple):
    """The bytes of each part of a payload. They add up to the size of the payload."""

    settings: int
    counts: int
    positions: int
    signs: int
    values: int


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """One parameter in a frame. SLACK bytes behind the payload must be readable."""

    numel: int
    count: int
    """The number of survivors, or `numel` where the parameter travels whole."""
    coding: "Coding"
    payload: NDArray[np.uint8]
    low_bits: int = 0
    planes: int = 0
    squared_remainder: float = 0.0
    """The sum of squares of what the payload lacks of finite values. Only the encoder knows it."""

    @property
    def kind(self) -> IntEnum:
        """The number of the coding on the wire."""
        return self.coding.kind

    @property
    def whole(self) -> bool:
        """Whether all elements travel, so that there are no positions."""
        return self.coding.whole

    @property
    def is_exact(self) -> bool:
        """Whether what arrives is what was sent, bit for bit."""
        return self.coding.is_exact

    @property
    def block(self) -> int:
        """The number of elements that share a count of survivors."""
        return self.coding.block(self)

    @property
    def threshold(self) -> float:
        """The threshold that the survivors have passed, or 0 where the parameter travels whole."""
        return self.coding.threshold(self)

    @property
    def step(self) -> float:
        """The step of the quantizer, or 0 where the coding has none."""
        return self.coding.step(self)

    def add_to(self, total: Floats, factor: float, name: str = "section") -> None:
        """Compute total[indices] += factor · values, with both operations rounded to float32.

        Args:
            total: contiguous float32 [numel].
            factor: rounded to float32.
            name: what error messages call this section.

        Raises:
            FrameError: the payload is damaged. Nothing outside `total` was touched.
            TypeError: `total` is not float32.
            ValueError: `total` does not have `numel` elements, is not contiguous or is read-only.
        """
        require_target(f"what {name} is added to", total, FLOAT32, self.numel)
        require_array(f"{name}'s payload", self.payload, UINT8)
        self.coding.add(self, total, np.float32(factor), name)

    def survivors(self, name: str = "section") -> tuple[Indices, Floats]:
        """Return the indices (int32 [count]) and the values (float32 [count]), as new arrays.

        Raises:
            FrameError: the payload is damaged; the message begins with `name`.
        """
        return self.coding.survivors(self, name)


class Coding(ABC):
    """A way to write the values of one parameter as a payload, and to read them back.

    Codings that send survivors derive from `PrunedCoding`, and those that send all elements from
    `WholeCoding`. Each family declares an `encode` of its own, since they need different arguments.
    A coding keeps nothing between calls, so that one object serves all threads.
    """

    whole: ClassVar[bool]
    """Whether all elements travel, so that there are no positions."""
    has_levels: ClassVar[bool] = False
    """Whether the coding uses `low_bits` and `planes` of a section. They are 0 in others."""

    def __init__(self, kind: IntEnum, *, is_exact: bool = False) -> None:
        self.kind = kind
        self.is_exact = is_exact

    @abstractmethod
    def add(self, section: Section, total: Floats, factor: np.float32, name: str) -> None:
        """Add factor · values to `total`, as `Section.add_to` does once it has checked arrays."""

    @abstractmethod
    def survivors(self, section: Section, name: str) -> tuple[Indices, Floats]:
        """Return what `Section.survivors` returns."""

    @abstractmethod
    def payload_bytes(self, section: Section, name: str) -> PayloadBytes:
        """Return the size of each part of a payload that `survivors` has decoded before."""

    @abstractmethod
    def check_payload(self, section: Section, name: str) -> None:
        """Raise FrameError where count, payload size or settings are out of their ranges.

        The count must be bounded by the bytes that are there, so that a forged one makes no
        reader allocate more than 256 times the size of the frame.
        """

    def check(self, section: Section, name: str) -> None:
        """Raise FrameError where the entry of a section, or its payload's start, is invalid."""
        if section.numel >= 2**31:
            refuse(f"{name} numel", f"{section.numel} is more than int32 indices can name")
        if not self.has_levels and (section.low_bits or section.planes):
            found = f"{section.low_bits} low bits and {section.planes} planes"
            refuse(f"{name} levels", f"{found}, where there are no levels")
        self.check_payload(section, name)

    def block(self, section: Section) -> int:
        """Return the number of elements that share a count of survivors."""
        return section.numel

    def threshold(self, section: Section) -> float:
        """Return the threshold that the survivors have passed, or 0 where there is none."""
        return 0.0

    def step(self, section: Section) -> float:
        """Return the step of the quantizer, or 0 where the coding has none."""
        return 0.0
