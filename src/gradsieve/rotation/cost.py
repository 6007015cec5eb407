"""Tell once where rotating takes more of a step than it is likely to be worth."""

import sys
import time

FIRST, LAST = 5, 25
"""Steps of which the cost is taken; those before compile and find memory."""
LARGE = 0.25
"""Of a step."""


class RotationCost:
    def __init__(self) -> None:
        self._steps = 0
        self._start = self._rotated_before = 0.0

    def end_step(self, rotating: float) -> None:
        """Take what rotating has taken so far, in seconds, at the end of each step.

        Prints a line after `LAST` steps, where it was a large part of the time. No warning: a
        filter might make it an error, on this rank alone.
        """
        self._steps += 1
        now = time.perf_counter()
        if self._steps == FIRST:
            self._start, self._rotated_before = now, rotating
        if self._steps != LAST:
            return
        share = (rotating - self._rotated_before) / (now - self._start)
        if share > LARGE:
            print(
                f"gradsieve: rotation takes {share:.0%} of a step, since few rows of input go "
                "through each matrix; it may not be worth its bits: attach(model, rotation=0), or "
                "a smaller block",
                file=sys.stderr,
                flush=True,
            )
