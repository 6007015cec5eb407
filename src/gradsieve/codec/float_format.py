"""The interface of a float format: how a float32 is stored in fewer bits, or in as many."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradsieve.codec.coding import Floats


class FloatFormat(ABC):
    """A format that gives every value the same number of bytes."""

    stored: ClassVar[np.dtype[Any]]
    """The dtype of a number on the wire, little-endian on every machine."""
    is_exact: ClassVar[bool] = False
    """Whether `widen` undoes `round` bit for bit."""

    @abstractmethod
    def round(self, values: Floats) -> NDArray[Any]:
        """Return float32 [N] as N numbers of the stored dtype, in this machine's byte order."""

    @abstractmethod
    def widen(self, numbers: NDArray[Any]) -> Floats:
        """Return as float32 [N], exactly, what `round` has made."""

    def to_bytes(self, numbers: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the bytes that numbers from `round` have on the wire."""
        return numbers.astype(self.stored, copy=False).view(np.uint8)

    def from_bytes(self, raw: NDArray[np.uint8]) -> Floats:
        """Return the values, float32 [N], that bytes on the wire stand for."""
        # A copy: payloads start at any address, and compiled loops want aligned numbers.
        return self.widen(np.frombuffer(raw, self.stored).astype(self.stored.newbyteorder("=")))
