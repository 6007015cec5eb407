"""Reports of steps, which ranks send to each other with the frames of the next step."""

import math
import statistics
import time
from collections import deque
from dataclasses import replace

from gradsieve.exchange.notes import Notes
from gradsieve.telemetry.report import NO_REPORT, StepReport, numbers_of, report_of, slowest_of

DENSE_STEPS = 5
"""Number of dense steps over which the median time is taken."""


class Reports:
    """Sends the report of this rank to the others, and receives theirs."""

    def __init__(self) -> None:
        self.notes = Notes(NO_REPORT)
        self._ended = -math.inf
        self._dense: deque[float] = deque(maxlen=DENSE_STEPS)

    def begin_step(self) -> None:
        self.notes.seconds = 0.0

    def end_step(self) -> float:
        """Return the seconds since the step before ended; infinity in the first step."""
        before, self._ended = self._ended, time.perf_counter()
        return self._ended - before

    def forget(self) -> None:
        """Begin anew with other ranks. The time since the last step means nothing any more."""
        self.tell_nothing()
        self.notes.heard = [self.notes.mine]
        self._ended = -math.inf
        self._dense.clear()

    def tell_nothing(self) -> None:
        """Send no report of a step that says nothing about others: a dense or a skipped one."""
        self.notes.mine = NO_REPORT

    def add_dense_step(self, seconds: float) -> None:
        self._dense.append(seconds)

    def tell(self, report: StepReport) -> None:
        # The time of the first step is unknown.
        if report.step < math.inf:
            dense_step = statistics.median(self._dense) if self._dense else 0.0
            self.notes.mine = list(numbers_of(replace(report, dense_step=dense_step)))

    def heard(self) -> StepReport | None:
        """Return the slowest rank's report of the step before; None if a rank sent none."""
        told = slowest_of(self.notes.heard)
        return report_of(told) if any(told) else None
