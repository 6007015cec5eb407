"""What averages the gradients of ranks that are played in one process."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Gradients = Sequence[Sequence[Tensor]]
"""A sequence for each rank, with a gradient for each parameter."""
Places = Sequence[int] | None
"""The places of the parameters among the model's; None stands for all of them."""


class Compressor(Protocol):
    def average(self, gradients: Gradients) -> tuple[list[Tensor], float]:
        """Return what the optimizer gets for each parameter, and a rank's mean number of bits."""
