"""Memory for survivors, kept between steps: fresh buffers cost a page fault every 4 KiB."""

import numpy as np
from numpy.typing import NDArray

from gradsieve.sieve.kernel import PADDING


class Workspace:
    """Room for the survivors of several parameters, side by side.

    What was written stays valid until `clear`. Memory that was never written to is never committed
    by the operating system, so that room for every element costs what the survivors need.
    """

    def __init__(self) -> None:
        self._indices = np.empty(0, np.int32)
        self._values = np.empty(0, np.float32)
        self._used = 0

    def clear(self, room: int) -> None:
        """Forget what was written and make room for `room` elements in all."""
        self._used = 0
        if room > self._indices.size:
            self._indices = np.empty(room, np.int32)
            self._values = np.empty(room, np.float32)

    def free(self, room: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Arrays of `room` elements behind what is in use."""
        stop = self._used + room
        if stop > self._indices.size:
            raise ValueError(
                f"the workspace has room for {self._indices.size} elements, {self._used} are in "
                f"use and {room} more were asked for; clear it with more room first"
            )
        return self._indices[self._used : stop], self._values[self._used : stop]

    def keep(self, count: int) -> None:
        """Put `count` elements of the last free arrays in use."""
        self._used += count


def room_for(numel: int, chunks: int = 1) -> int:
    """Elements of room that the survivors of one parameter may need."""
    return numel + chunks * PADDING
