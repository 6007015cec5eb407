"""The pieces of a parameter whose residual one rank keeps for others."""

from typing import NamedTuple

from torch import Tensor


class Owned:
    """The residual of the piece whose sums this rank prunes (two-shot), on the CPU."""

    def __init__(self, start: int, residual: Tensor) -> None:
        self.start = start
        self.residual = residual
        """The residual (float32 [numel of the piece]), in units of the average of the ranks."""
        self.before: Tensor | None = None
        """The residual before this step, if the step has pruned the piece."""

    @property
    def stop(self) -> int:
        return self.start + self.residual.numel()


class Dealt(NamedTuple):
    """The piece of a parameter, `start` to `stop`, whose residual this rank keeps for its node.

    `size` is the number of ranks of the node.
    """

    start: int
    stop: int
    size: int
