"""The sums over one parameter from which its next threshold is computed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradsieve.sieve.magnitudes import Magnitudes


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Sums over one parameter's accumulated gradient, which is gradient + residual.

    They are split into elements that were sent (survivors) and elements that were not. NaN and
    infinite elements count as survivors and as non-finite. Each keeps its old residual,
    which stands in for it in the sums.
    """

    numel: int
    """The number of elements of the parameter."""
    survivors: int
    """The number of elements that were sent."""
    nonfinite: int
    """The number of survivors that are NaN or infinite."""
    sum: float
    """The sum of all elements, with their signs."""
    unsent_sum: float
    """The sum of the magnitudes that were not sent."""
    unsent_square_sum: float
    """The sum of the squares that were not sent, which is the squared norm of the new residual."""
    survivor_sum: float
    """The sum of the finite magnitudes that were sent."""
    survivor_square_sum: float
    """The sum of the finite squares that were sent."""
    gradient_square_sum: float
    """The sum of the squares of the gradient alone. It is not finite if the gradient is not. On the
    CPU runs of 4,096 elements are summed in float32, where very small squares vanish and very large
    ones overflow."""
    largest: float
    """The largest finite magnitude."""
    magnitudes: Magnitudes | None = None
    """A histogram of the magnitudes before selection, if the threshold policy has asked for one."""

    @classmethod
    def from_totals(cls, numel: int, survivors: int, totals: Sequence[float]) -> "Moments":
        """Make moments of the totals of a pass, which are in the order of `tile.SUMS`."""
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
        """The share of elements that were sent, 0 to 1."""
        return self.survivors / self.numel if self.numel else 0.0

    @property
    def mean_magnitude(self) -> float:
        """The mean magnitude of all elements."""
        return (self.unsent_sum + self.survivor_sum) / self.numel if self.numel else 0.0

    @property
    def unsent_mean(self) -> float:
        """The mean magnitude of unsent elements, and of the residuals of non-finite ones."""
        # A non-finite survivor keeps its old residual, which is in the sum.
        unsent = self.numel - self.survivors + self.nonfinite
        return self.unsent_sum / unsent if unsent else 0.0

    @property
    def std(self) -> float:
        """The population standard deviation of all elements."""
        if not self.numel:
            return 0.0
        mean = self.sum / self.numel
        mean_square = (self.unsent_square_sum + self.survivor_square_sum) / self.numel
        return math.sqrt(max(0.0, mean_square - mean * mean))
