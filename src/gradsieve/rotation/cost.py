"""Tell once where rotating takes more of a step than it is likely to be worth."""

import time
import warnings

FIRST, LAST = 5, 25
"""Steps of which the cost is taken; those before compile and find memory."""
LARGE = 0.2
"""Of a step."""


class RotationCost:
    def __init__(self) -> None:
        self._steps = 0
        self._rotating = self._all = 0.0
        self._before = 0.0

    def add(self, rotating: float) -> None:
        """Seconds that a step spent on coefficients; call it at the end of each step.

        Warns after `LAST` steps, where they took a large part of the time.
        """
        now = time.perf_counter()
        if FIRST < self._steps <= LAST:
            self._rotating += rotating
            self._all += now - self._before
        self._before = now
        if self._steps == LAST and self._rotating > LARGE * self._all:
            warnings.warn(
                f"gradsieve: rotation takes {self._rotating / self._all:.0%} of a step, since few "
                "rows of input go through each matrix; it may not be worth its bits: "
                "attach(model, rotation=0) or a smaller block",
                stacklevel=2,
            )
        self._steps += 1
