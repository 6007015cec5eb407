"""Tell once where rotating takes more of a step than it is likely to be worth, or is missing."""

import statistics
import time

from gradsieve.runtime.notices import tell

FIRST, LAST = 5, 25
"""Steps of which the cost is taken; those before compile and find memory."""
LARGE = 0.25
"""Of a step."""
SCARCE = 0.3
"""Bits an element, below which unrotated gradients lose much (see docs/quality.md)."""


class RotationCost:
    def __init__(self) -> None:
        self._steps = 0
        self._start = self._rotated_before = 0.0

    def end_step(self, rotating: float) -> None:
        """Take what rotating has taken so far, in seconds, at the end of each step.

        Tells after `LAST` steps, where it was a large part of the time.
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
    """Where a budget leaves few bits and nothing is rotated."""

    def __init__(self) -> None:
        self._bits: list[float] = []

    def end_step(self, bits: float) -> None:
        """Take the bits an element of each step with frames; tells after `LAST` of them."""
        if len(self._bits) == LAST:
            return
        self._bits.append(bits)
        if len(self._bits) == LAST and statistics.median(self._bits) < SCARCE:
            tell(
                f"gradsieve: {statistics.median(self._bits):.2f} bits an element fit in a step "
                "here. Where some thousand rows of input go through each matrix, rotation=256 "
                "makes more of them"
            )
