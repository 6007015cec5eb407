"""Memory for survivors that is kept between steps, since new memory costs page faults."""

import numpy as np
from numpy.typing import NDArray


class Workspace:
    """Memory for the survivors of several parameters, to pass to `select` as `out`.

    Survivors stay valid until `clear`. There is room for every element to survive, but memory that
    was never written is not committed by the operating system. The cost is that of the step with
    the most survivors.

    Example:
        >>> import torch
        >>> import gradsieve as gs
        >>> workspace = gs.Workspace()
        >>> for step in range(2):
        ...     workspace.clear()
        ...     for gradient in (torch.randn(100), torch.randn(30)):
        ...         survivors = gs.select(gradient, torch.zeros_like(gradient), 1.0, out=workspace)
    """

    def __init__(self) -> None:
        self._indices = np.empty(0, np.int32)
        self._values = np.empty(0, np.float32)
        self._used = 0
        self._asked = 0

    def clear(self) -> None:
        """Free all memory for reuse. It grows to what was needed since the last `clear`."""
        if self._asked > self._indices.size:
            self._make(self._asked)
        self._used = self._asked = 0

    def free(self, room: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return free arrays of `room` elements, for indices and for values."""
        self._asked += room
        if self._used + room > self._indices.size:
            # Views that were handed out keep the old arrays alive.
            self._make(room)
        stop = self._used + room
        return self._indices[self._used : stop], self._values[self._used : stop]

    def keep(self, count: int) -> None:
        """Keep the first `count` elements of the arrays that `free` has returned last."""
        self._used += count

    def _make(self, room: int) -> None:
        self._indices = np.empty(room, np.int32)
        self._values = np.empty(room, np.float32)
        self._used = 0
