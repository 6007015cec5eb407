"""Warn once where rotation takes a large part of a step, or where it is missing."""

import statistics
import time

from gradsieve.runtime.notices import tell

FIRST, LAST = 5, 25
"""The first and the last step that are measured. Those before compile and allocate memory."""
LARGE = 0.25
"""The share of a step from which rotation is reported."""
SCARCE = 0.3
"""The bits an element below which unrotated gradients lose much (see docs/quality.md)."""


class RotationCost:
    """A measure of the share of a step that rotation takes."""

    def __init__(self) -> None:
        self._steps = 0
        self._start = self._rotated_before = 0.0

    def end_step(self, rotating: float) -> None:
        """Measure a step, and warn after `LAST` steps if the share was large.

        Args:
            rotating: the seconds that rotation has taken in all steps so far.
        """
        self._steps += 1
        now = time.perf_counter()
        if self._steps == FIRST:
            self._start, self._rotated_before = now, rotating
        if self._steps != LAST:
            return
        share = (rotating - self._rotated_before) / (now - self._start)
        if share > LARGE:
            tell(
                f"gradsieve: rotation takes {share:.0%} of a step, since few rows of input go "
                "through each matrix; it may not be worth its bits: attach(model, rotation=0), or "
                "a smaller block"
            )


class ScarceBits:
    """A measure of the bits that a budget leaves, where nothing is rotated."""

    def __init__(self) -> None:
        self._bits: list[float] = []

    def end_step(self, bits: float) -> None:
        """Note a step that has sent frames, and warn after `LAST` of them if bits were few.

        Args:
            bits: the bits that were sent for each element.
        """
        if len(self._bits) == LAST:
            return
        self._bits.append(bits)
        if len(self._bits) == LAST and statistics.median(self._bits) < SCARCE:
            tell(
                f"gradsieve: {statistics.median(self._bits):.2f} bits an element fit in a step "
                "here. Where some thousand rows of input go through each matrix, rotation=256 "
                "makes more of them"
            )
