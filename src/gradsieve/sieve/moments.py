"""What one pass over a parameter yields for its next threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradsieve.sieve.magnitudes import Magnitudes


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Sums over the accumulated gradient of one parameter, split by what was sent.

    A non-finite element counts as a survivor and as non-finite; in the sums the residual that it
    leaves behind stands for it.
    """

    numel: int
    """Elements of the parameter."""
    survivors: int
    """Elements that were sent."""
    nonfinite: int
    """Survivors that are NaN or infinite."""
    sum: float
    """Signed sum of the accumulated gradient."""
    unsent_sum: float
    """Sum of the magnitudes that were not sent."""
    unsent_square_sum: float
    """Sum of the squares that were not sent: the squared norm of the new residual."""
    survivor_sum: float
    """Sum of the finite magnitudes that were sent."""
    survivor_square_sum: float
    """Sum of the finite squares that were sent."""
    gradient_square_sum: float
    """Sum of the squares of the gradient alone, in float32 within 4,096 elements: it may vanish or
    overflow where the gradient's square does; not finite where the gradient is not."""
    largest: float
    """Largest finite magnitude."""
    magnitudes: Magnitudes | None = None
    """Histogram of the accumulated magnitudes before the selection, where it was asked for."""

    @classmethod
    def from_totals(cls, numel: int, survivors: int, totals: Sequence[float]) -> "Moments":
        """From a pass: sum, unsent's, survivors' and gradient's sums, largest, non-finite."""
        signed, unsent, unsent_squares, sent, sent_squares, squares, largest, nonfinite = totals
        return cls(
            numel=numel,
            survivors=survivors,
            nonfinite=int(nonfinite),
            sum=signed,
            unsent_sum=unsent,
            unsent_square_sum=unsent_squares,
            survivor_sum=sent,
            survivor_square_sum=sent_squares,
            gradient_square_sum=squares,
            largest=largest,
        )

    @property
    def density(self) -> float:
        return self.survivors / self.numel if self.numel else 0.0

    @property
    def mean_magnitude(self) -> float:
        return (self.unsent_sum + self.survivor_sum) / self.numel if self.numel else 0.0

    @property
    def unsent_mean(self) -> float:
        # A non-finite survivor has left its residual behind, which is in the sum.
        unsent = self.numel - self.survivors + self.nonfinite
        return self.unsent_sum / unsent if unsent else 0.0

    @property
    def std(self) -> float:
        """Population standard deviation of the accumulated gradient."""
        if not self.numel:
            return 0.0
        mean = self.sum / self.numel
        mean_square = (self.unsent_square_sum + self.survivor_square_sum) / self.numel
        return math.sqrt(max(0.0, mean_square - mean * mean))
