"""The interface of a float format: how a float32 is stored in a fixed number of bytes."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradsieve.codec.coding import Floats


class FloatFormat(ABC):
    """A format that gives every value the same number of bytes."""

    width: ClassVar[int]
    """The bytes of a value."""
    is_exact: ClassVar[bool] = False
    """Whether every value comes back bit for bit."""

    @abstractmethod
    def to_bytes(self, values: Floats) -> NDArray[np.uint8]:
        """Return the bytes of float32 [N] on the wire, which may share memory with the values.

        Finite values stay finite: those beyond the largest of the format become the largest. The
        bits are the same on every processor.
        """

    @abstractmethod
    def from_bytes(self, raw: NDArray[np.uint8]) -> Floats:
        """Return the values that such bytes stand for, as a new float32 [N].

        The bytes may begin at any address.
        """
