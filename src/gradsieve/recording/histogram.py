"""Histograms over fixed logarithmic bins, the same for every tensor, step and rank."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

SMALLEST_EXPONENT, LARGEST_EXPONENT = -48, 16
MANTISSA_BITS = 3
"""Number of bits of the mantissa that tell bins apart, beside sign and exponent: eight bins per
octave."""
BINS_A_SIGN = (LARGEST_EXPONENT - SMALLEST_EXPONENT) << MANTISSA_BITS
BINS = 2 * BINS_A_SIGN + 1
"""Number of bins, in the order of their values. The bin in the middle holds zero and magnitudes
below 2^SMALLEST_EXPONENT. The outermost bins also hold finite magnitudes of 2^LARGEST_EXPONENT and
more."""
COARSEST = 0.5
"""Largest width of a bin, in standard deviations, from which a share is read."""


@cache
def edges() -> NDArray[np.float64]:
    """Return the [BINS + 1] edges of the bins, ascending."""
    octaves = np.arange(BINS_A_SIGN + 1) >> MANTISSA_BITS
    inside = np.arange(BINS_A_SIGN + 1) & (2**MANTISSA_BITS - 1)
    magnitudes = np.ldexp(1 + inside / 2**MANTISSA_BITS, octaves + SMALLEST_EXPONENT)
    return np.concatenate([-magnitudes[::-1], magnitudes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The counts and sums of a tensor, or of a sample of it, over one or more ranks."""

    counts: Counts
    """Number of finite elements in each bin (int64 [BINS])."""
    elements: int
    """Number of elements of the tensors of all ranks, of which all or a sample were counted."""
    total: float
    """Sum of the finite elements that were counted."""
    square_sum: float
    """Sum of their squares."""
    nonfinite: int = 0
    """Number of elements that are not finite, which are in no bin."""

    @property
    def counted(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return self.total / max(1, self.counted)

    @property
    def deviation(self) -> float:
        """Standard deviation of the elements that were counted."""
        if not self.counted:
            return 0.0
        return math.sqrt(max(0.0, self.square_sum / self.counted - self.mean**2))

    def cumulated(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of elements below each value, as if bins were filled evenly."""
        below = np.concatenate([[0], np.cumsum(self.counts)]) / max(1, self.counted)
        return np.interp(values, edges(), below)

    def share_beyond(self, deviations: float) -> float | None:
        """Return the share of elements further from the mean than so many standard deviations.

        It is None if the bins there are too wide. They are if the mean is large.
        """
        reach = deviations * self.deviation
        if not reach:
            return 0.0
        ends = np.array([self.mean - reach, self.mean + reach])
        bins = np.clip(np.searchsorted(edges(), ends, side="right") - 1, 0, BINS - 1)
        if np.diff(edges())[bins].max() > COARSEST * self.deviation:
            return None
        lower, upper = self.cumulated(ends)
        return float(1 - (upper - lower))

    def as_json(self) -> dict[str, Any]:
        """Return plain data. "bins" is [first, counts ...] up to the last filled bin."""
        filled = np.flatnonzero(self.counts)
        first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, -1)
        return {
            "bins": [first, *self.counts[first : last + 1].tolist()],
            "elements": self.elements,
            "total": self.total,
            "square_sum": self.square_sum,
            "nonfinite": self.nonfinite,
        }

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> "Histogram":
        """Return the histogram that `as_json` has written.

        Raises:
            KeyError, TypeError, ValueError: `read` is something else.
        """
        first, *inside = read["bins"]
        counts = np.zeros(BINS, np.int64)
        counts[first : first + len(inside)] = inside
        return cls(
            counts=counts,
            elements=int(read["elements"]),
            # A sum that overflowed was written as null.
            total=float(read["total"] or 0.0),
            square_sum=float(read["square_sum"] or 0.0),
            nonfinite=int(read["nonfinite"]),
        )


def sum_of(histograms: Iterable[Histogram]) -> Histogram:
    """Add up histograms of the same tensor on several ranks, counted in the same way."""
    found = list(histograms)
    return Histogram(
        counts=np.sum([h.counts for h in found], axis=0),
        elements=sum(h.elements for h in found),
        total=sum(h.total for h in found),
        square_sum=sum(h.square_sum for h in found),
        nonfinite=sum(h.nonfinite for h in found),
    )


def overall(histograms: Iterable[Histogram]) -> Histogram:
    """Add up histograms of several tensors, each weighted by its number of elements."""
    weighted = []
    for one in histograms:
        factor = one.elements / max(1, one.counted + one.nonfinite)
        weighted.append(
            Histogram(
                counts=np.rint(one.counts * factor).astype(np.int64),
                elements=one.elements,
                total=one.total * factor,
                square_sum=one.square_sum * factor,
                nonfinite=round(one.nonfinite * factor),
            )
        )
    return sum_of(weighted)
