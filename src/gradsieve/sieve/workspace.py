"""Memory for survivors, kept between steps: fresh buffers cost a page fault every 4 KiB."""

import numpy as np
from numpy.typing import NDArray


class Workspace:
    """Room for the survivors of several parameters, side by side.

    What was written stays valid until `clear`. Memory that was never written to is never committed
    by the operating system: room for every element costs what the survivors of the fullest step
    need.
    """

    def __init__(self) -> None:
        self._indices = np.empty(0, np.int32)
        self._values = np.empty(0, np.float32)
        self._used = 0
        self._asked = 0

    def clear(self) -> None:
        """Forget what was written; from now on there is room for as much as was asked for."""
        if self._asked > self._indices.size:
            self._make(self._asked)
        self._used = self._asked = 0

    def free(self, room: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Arrays of `room` elements behind what is in use."""
        self._asked += room
        if self._used + room > self._indices.size:
            # The arrays before stay alive through the views that were handed out.
            self._make(room)
        stop = self._used + room
        return self._indices[self._used : stop], self._values[self._used : stop]

    def keep(self, count: int) -> None:
        """Put `count` elements of the last free arrays in use."""
        self._used += count

    def _make(self, room: int) -> None:
        self._indices = np.empty(room, np.int32)
        self._values = np.empty(room, np.float32)
        self._used = 0
