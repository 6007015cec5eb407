"""Threshold policies, which turn the moments of a parameter into its next threshold.

A policy is a pure function of moments and of the threshold before. The caller keeps both for each
parameter. A new policy is a new class with the two members of `Threshold`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from gradsieve.sieve import Moments
from gradsieve.sieve.magnitudes import below

Measured = Literal["sent", "gradient", "accumulated", "magnitudes", "balanced"]
"""The moments that a policy can read; see `Threshold.measured`."""


class Threshold(Protocol):
    """A threshold policy: any object with these two members."""

    @property
    def measured(self) -> Measured:
        """The moments that the policy reads.

        - "sent": those of the last selection, at no cost.
        - "gradient": those of the gradient of this step, measured before the selection in a pass
          of their own. They count no element as sent.
        - "accumulated": the same for gradient + residual.
        - "magnitudes": as "sent", with a histogram of the magnitudes of gradient + residual in
          this step.
        - "balanced": those of a gradient of one magnitude, which is the geometric mean of two root
          mean squares over the last steps: of the parameter and of the whole model.
        """

    def next(self, moments: Moments, threshold: float | None) -> float:
        """Return the next threshold, 0 or more.

        Args:
            moments: the moments that `measured` names. In its first step a parameter has no last
                selection; "sent" then means those of gradient + residual, with nothing sent.
            threshold: the threshold before; None at first.
        """


@dataclass(frozen=True)
class Fixed:
    """A constant threshold.

    Args:
        value: the threshold, in units of the unscaled gradients. 0 sends everything but zeros.

    Raises:
        ValueError: `value` is negative or NaN.

    Example:

        >>> import gradsieve as gs
        >>> gs.Fixed(0.01)
        Fixed(value=0.01)
    """

    value: float
    measured: ClassVar[Measured] = "sent"

    def __post_init__(self) -> None:
        require(self.value >= 0, "Fixed", "value", "0 or more", self.value)

    def next(self, moments: Moments, threshold: float | None) -> float:
        return self.value


@dataclass(frozen=True)
class Sigma:
    """A threshold of k standard deviations.

    Args:
        k: the number of deviations. A larger k sends less. With "gradient", about 18 % of the
            elements pass at 1 and 10 % at 2 (see docs/study.md).
        of: the quantity whose deviation counts.

            - "gradient": the gradient of this parameter in this step. A constant gradient has no
              deviation, so its threshold is 0.
            - "accumulated": gradient + residual. This feeds back on itself: the residual widens
              the distribution, fewer elements pass, and the residual grows.
            - "balanced": the geometric mean of two root mean squares over the last steps, of this
              parameter's gradient and of all pruned gradients. The second alone would send most
              where gradients are large and leave other parameters behind. The first alone would
              send about the same share of every parameter.

    Raises:
        ValueError: `k` is not positive and finite, or `of` is another word.

    Example:

        >>> import torch
        >>> import gradsieve as gs
        >>> moments = gs.measure(torch.tensor([1.0, -1.0, 3.0, -3.0]))
        >>> round(gs.Sigma(2).next(moments, None), 4)  # the variance is 5
        4.4721
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
    """A multiple of the mean magnitude of the elements that the last step did not send.

    With small thresholds t, the unsent magnitudes are uniform between 0 and t, and their mean is
    t/2. With a scale of 2 or less the only stable threshold is therefore 0: it falls until
    everything but exact zeros is sent. ``scale=1`` is the rule as first proposed. With a larger
    scale the threshold grows back from any small value and settles where
    ``scale · mean(unsent) = t``.

    Args:
        scale: the factor. A larger one sends less.

    Raises:
        ValueError: `scale` is not positive and finite.

    Example:

        >>> import torch
        >>> import gradsieve as gs
        >>> moments = gs.measure(torch.tensor([1.0, -1.0, 3.0, -3.0]))
        >>> gs.UnsentMean(scale=1).next(moments, None)
        2.0
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
            # Equal magnitudes would always lie below a multiple of their mean, and never be sent.
            return min(self.scale * moments.unsent_mean, below(moments.largest))
        if moments.unsent_sum == 0 and self.scale > self.LARGEST_COLLAPSING_SCALE:
            return self.scale * moments.mean_magnitude
        return self.scale * moments.unsent_mean


@dataclass(frozen=True)
class Density:
    """A threshold that sends a given share of the elements of each parameter.

    It is read from a histogram of the magnitudes of gradient + residual in this step, of a sample
    if the parameter is large. The density of the last step would be too late a guide: with error
    feedback, the residual moves with every change of the threshold.

    Args:
        target: the share of the elements that is sent, on average over steps.

    Raises:
        ValueError: `target` is not between 0 and 1, both excluded.

    Example:

        >>> import gradsieve as gs
        >>> gs.Density(0.01)
        Density(target=0.01)
        >>> gs.Density(1.5)
        Traceback (most recent call last):
            ...
        ValueError: Density: target must be between 0 and 1, got 1.5
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
