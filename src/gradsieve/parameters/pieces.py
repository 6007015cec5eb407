"""The pieces of a parameter whose residual one rank keeps for others."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradsieve.errors import SieveError

AddUp = Callable[[Tensor], None]
"""Replaces a tensor by its sum over the ranks of a node. All of them must call it."""


def nothing_to_add(total: Tensor) -> None:
    """Leave a residual as it is, where there are no others to add."""


class Owned:
    """The residual of the piece whose sums this rank prunes (two-shot), on the CPU."""

    def __init__(self, start: int, residual: Tensor) -> None:
        self.start = start
        self.residual = residual
        """The residual (float32 [numel of the piece]), in units of the average of the ranks."""
        self.before: Tensor | None = None
        """The residual before this step, if the step has pruned the piece."""

    @classmethod
    def empty(cls, start: int, stop: int) -> "Owned":
        """Return a piece of which nothing is kept yet."""
        return cls(start, torch.zeros(stop - start, dtype=torch.float32, device="cpu"))

    @property
    def stop(self) -> int:
        return self.start + self.residual.numel()

    def spread(self, numel: int) -> Tensor:
        """Return the residual among zeros (float32 [numel of the parameter], on the CPU)."""
        whole = torch.zeros(numel, dtype=torch.float32, device="cpu")
        whole[self.start : self.stop] = self.residual
        return whole

    def undo(self) -> None:
        """Undo what this step has pruned."""
        if self.before is not None:
            self.residual, self.before = self.before, None


class Dealt(NamedTuple):
    """The piece of a parameter, `start` to `stop`, whose residual this rank keeps for its node.

    `size` is the number of ranks of the node.
    """

    start: int
    stop: int
    size: int

    def piece_of_sum(self, flat: Tensor, add_up: AddUp) -> Tensor:
        """Add up the residuals of the node's ranks (float32), and leave zeros around the piece."""
        # Work on a copy, because a rank may die during `add_up`.
        total = flat.clone()
        add_up(total)
        total[: self.start] = 0
        total[self.stop :] = 0
        return total

    def require_same(self, name: str, loaded: "Dealt") -> None:
        """Raise SieveError if the loaded state of a parameter has another piece."""
        if loaded != self:
            raise SieveError(
                f"parameter {name}: this rank keeps the residual of elements {self.start} to "
                f"{self.stop}, the loaded state has {loaded.start} to {loaded.stop}: nodes were of "
                "another size; gs.reshard makes states without pieces"
            )
