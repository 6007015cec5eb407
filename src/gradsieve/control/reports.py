"""Reports of steps, told to all ranks with the next step's frames."""

import math
import statistics
import time
from collections import deque
from dataclasses import replace

from gradsieve.exchange.notes import Notes
from gradsieve.telemetry.report import NO_REPORT, StepReport, numbers_of, report_of, slowest_of

DENSE_STEPS = 5
"""Number of dense steps that the median is taken of."""


class Reports:
    """Tells this rank's report, and hears the others'."""

    def __init__(self) -> None:
        self.notes = Notes(NO_REPORT)
        self._ended = -math.inf
        self._dense: deque[float] = deque(maxlen=DENSE_STEPS)

    def begin_step(self) -> None:
        self.notes.seconds = 0.0

    def end_step(self) -> float:
        """Seconds since the step before ended; infinity at first."""
        before, self._ended = self._ended, time.perf_counter()
        return self._ended - before

    def tell_nothing(self) -> None:
        """For a dense step, or one whose gradients are not finite, which measures no other."""
        self.notes.mine = NO_REPORT

    def add_dense_step(self, seconds: float) -> None:
        self._dense.append(seconds)

    def tell(self, report: StepReport) -> None:
        # How long the first step took is not known.
        if report.step < math.inf:
            dense_step = statistics.median(self._dense) if self._dense else 0.0
            self.notes.mine = list(numbers_of(replace(report, dense_step=dense_step)))

    def heard(self) -> StepReport | None:
        """The slowest rank's report of the step before; None where a rank told none."""
        told = slowest_of(self.notes.heard)
        return report_of(told) if any(told) else None
