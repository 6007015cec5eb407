"""What averages the gradients of ranks that are played in one process."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

Gradients = Sequence[Sequence[Tensor]]
"""A sequence for each rank, with a gradient for each parameter."""
Places = Sequence[int] | None
"""The places of the parameters among the model's; None stands for all of them."""


class Compressor(Protocol):
    def average(self, gradients: Gradients) -> tuple[list[Tensor], float]:
        """Return what the optimizer gets for each parameter, and a rank's mean number of bits."""


class PlacedCompressor(Protocol):
    def average(self, gradients: Gradients, places: Places = None) -> tuple[list[Tensor], float]:
        """Do what `Compressor.average` does, for the parameters in these places."""


@runtime_checkable
class SendsPositions(Protocol):
    """A compressor that sends the positions of elements, which a better code would shorten."""

    bits_at_entropy: float
    """The mean bits that a rank has sent so far, had each position taken its entropy."""


def bits_of_positions(numel: int, kept: int) -> float:
    """Return log₂ of the number of ways to choose so many elements: uniform positions' entropy."""
    ways = math.lgamma(numel + 1) - math.lgamma(kept + 1) - math.lgamma(numel - kept + 1)
    return max(0.0, ways / math.log(2))
