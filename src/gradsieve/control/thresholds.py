"""Threshold policies: from the moments of a parameter to its next threshold.

Every policy is a pure function of moments and of the threshold that stood before; the caller keeps
both for each parameter. A new policy is a new class with these two members.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from gradsieve.sieve import Moments
from gradsieve.sieve.magnitudes import below

Measured = Literal["sent", "gradient", "accumulated", "magnitudes", "balanced"]


class Threshold(Protocol):
    """What the hook asks of a policy."""

    @property
    def measured(self) -> Measured:
        """Which moments the policy reads.

        "sent": those that the last selection yielded, at no cost. "gradient" and "accumulated":
        this step's, before the selection, in a pass of their own; they count nothing as sent.
        "magnitudes": as "sent", with a histogram of this step's accumulated magnitudes.
        "balanced": of a gradient as large as the geometric mean of the parameter's and the whole
        model's over the last steps.
        """

    def next(self, moments: Moments, threshold: float | None) -> float:
        """The next threshold, 0 or more; `threshold` is the one before, None at first.

        At first every policy gets moments of the accumulated gradient that count nothing as sent.
        """


@dataclass(frozen=True)
class Fixed:
    """A constant threshold.

    Raises:
        ValueError: `value` is negative or NaN.
    """

    value: float
    measured: ClassVar[Measured] = "sent"

    def __post_init__(self) -> None:
        require(self.value >= 0, "Fixed", "value", "0 or more", self.value)

    def next(self, moments: Moments, threshold: float | None) -> float:
        return self.value


@dataclass(frozen=True)
class Sigma:
    """k standard deviations of a gradient.

    Of the gradient: of this parameter in this step. Of the accumulated gradient: it feeds back on
    itself, since the residual widens it, fewer elements pass and the residual grows. A constant
    gradient has no deviation: its threshold is 0. Balanced: the geometric mean of two root mean
    squares over the last steps, of the parameter's gradient and of all gradients that are pruned.
    The model's alone would send most where gradients are large and leave other parameters behind,
    the parameter's alone as much of each.

    Raises:
        ValueError: `k` is not positive and finite, or `of` is another word.
    """

    k: float
    of: Literal["gradient", "accumulated", "balanced"] = "gradient"

    def __post_init__(self) -> None:
        require(0 < self.k < math.inf, "Sigma", "k", "positive and finite", self.k)
        known = self.of in ("gradient", "accumulated", "balanced")
        require(known, "Sigma", "of", '"gradient", "accumulated" or "balanced"', repr(self.of))

    @property
    def measured(self) -> Measured:
        return self.of

    def next(self, moments: Moments, threshold: float | None) -> float:
        return self.k * moments.std


@dataclass(frozen=True)
class UnsentMean:
    """A multiple of the mean magnitude that the last step did not send.

    Near zero the unsent magnitudes are uniform between 0 and the threshold t, their mean is t/2. A
    scale of 2 or less therefore has no stable point but 0: the threshold falls until everything
    but exact zeros is sent. ``scale=1`` is the rule as first proposed. Above 2 the threshold
    grows back from any small value and settles where ``scale · mean(unsent) = t``.

    Raises:
        ValueError: `scale` is not positive and finite.
    """

    scale: float = 4.0
    measured: ClassVar[Measured] = "sent"
    LARGEST_COLLAPSING_SCALE: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, "UnsentMean", "scale", "positive and finite", self.scale)

    def next(self, moments: Moments, threshold: float | None) -> float:
        if moments.largest == 0:
            return threshold or 0.0
        if moments.survivors == 0:
            # Magnitudes that are all alike lie below any multiple of their mean for ever.
            return min(self.scale * moments.unsent_mean, below(moments.largest))
        if moments.unsent_sum == 0 and self.scale > self.LARGEST_COLLAPSING_SCALE:
            return self.scale * moments.mean_magnitude
        return self.scale * moments.unsent_mean


@dataclass(frozen=True)
class Density:
    """Sends a share of `target` of the elements, on average over steps.

    The threshold is read from a histogram of this step's accumulated magnitudes, of a sample where
    the parameter is large. A threshold steered by the last step's density alone lags: with error
    feedback the residual moves with every change of the threshold.

    Raises:
        ValueError: `target` is not between 0 and 1, both excluded.
    """

    target: float
    measured: ClassVar[Measured] = "magnitudes"

    def __post_init__(self) -> None:
        require(0 < self.target < 1, "Density", "target", "between 0 and 1", self.target)

    def next(self, moments: Moments, threshold: float | None) -> float:
        if moments.magnitudes is None:
            raise ValueError("Density reads moments.magnitudes; they were not measured")
        return moments.magnitudes.threshold_for(self.target)


def require(holds: bool, policy: str, field: str, wanted: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{policy}: {field} must be {wanted}, got {got}")
