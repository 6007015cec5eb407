"""Choose the topology of the next step by the time of the steps so far (``exchange="auto"``)."""

import math
import statistics
from collections import deque

from gradsieve.exchange.cost import Links
from gradsieve.telemetry.report import StepReport
from gradsieve.topology import DENSE, FRAMES, GATHER, HIERARCHICAL
from gradsieve.topology.topology import AnyTopology, FrameTopology

REMEMBERED = 10
"""Number of steps with frames over which medians are taken."""
FIRST_RUN, LONGEST_RUN = 5, 160
"""Number of dense steps in a row. While they are faster, each run is twice as long as the last."""
FIRST_REASON = "the first steps: the optimizer gets to know every element"
LOOK = 4
"""Number of steps with frames that are measured after a dense run. Reports of dense steps arrive
with the frames of later steps."""
FIRST_PAUSE, LONGEST_PAUSE = 10, 320
"""Number of steps with frames until a dense run is tried again. It doubles after each dense run
that was slower."""
FIRST_SECONDS, FIRST_SECONDS_BESIDE_LOW_THRESHOLDS = 60.0, 3.0
"""Largest number of seconds that the first dense run may take, by the cost model of the link.
Where thresholds begin low, frames show almost every element to the optimizer too, and take a slow
link less time."""
WORTH = 1.02
"""Multiple of the time of a step with frames. A dense step that takes no longer is preferred,
because it loses nothing."""
LEAST_GAIN = 0.02
"""Share of a step that another topology of frames must save to be chosen."""


class Choice:
    """Chooses the topology of the next step. All ranks get the same reports and choose the same.

    The first steps are dense. Optimizers that divide by a running mean of squares (Adam) then know
    every element, and dense steps are measured. Later, a run of dense steps is tried wherever the
    cost model says that they may be faster. They are tried and not computed, because no model
    knows how much processor time an all-reduce takes. The topology of frames is computed.

    Args:
        links: the measured links.
        gradient_bytes: the bytes of all gradients, as an all-reduce sends them.
        may_be_dense: whether steps may be dense where that is faster.
        begins_low: whether thresholds begin low.
    """

    def __init__(
        self,
        links: Links,
        gradient_bytes: int,
        *,
        may_be_dense: bool = True,
        begins_low: bool = False,
    ) -> None:
        self.may_be_dense = may_be_dense
        self.links, self.gradient_bytes = links, gradient_bytes
        self.frames: FrameTopology = GATHER if links.nodes is None else HIERARCHICAL
        """The topology of the steps that are not dense."""
        promised = DENSE.seconds(links, gradient_bytes, 0.0)
        seconds = FIRST_SECONDS_BESIDE_LOW_THRESHOLDS if begins_low else FIRST_SECONDS
        first = min(FIRST_RUN, seconds / max(1e-9, promised))
        self.steps: deque[float] = deque(maxlen=REMEMBERED)
        """Seconds of the last steps with frames."""
        self.exposed: deque[float] = deque(maxlen=REMEMBERED)
        """Seconds that the exchange has added to each of them."""
        self.run = self.dense_left = int(first) if may_be_dense else 0
        self.reason = FIRST_REASON if self.run else "nothing is measured yet"
        self.pause = self.countdown = FIRST_PAUSE
        self.is_looking = False

    @property
    def topology(self) -> AnyTopology:
        """The topology of the next step."""
        return DENSE if self.dense_left else self.frames

    def skip_first_run(self) -> None:
        self.run = self.dense_left = 0
        self.reason = "nothing is measured yet"

    def end_dense_step(self) -> None:
        self.dense_left -= 1
        if not self.dense_left and self.run >= FIRST_RUN:
            self.is_looking, self.countdown = True, LOOK
            self.reason = "to see what the sieve would take"

    def end_sieve_step(self, report: StepReport, buckets: int) -> None:
        """End a step with frames: learn from a report, and choose again if it is time.

        Args:
            report: the slowest rank's report of a recent step with frames.
            buckets: the number of buckets in a step.
        """
        self.steps.append(report.step)
        self.exposed.append(report.exposed)
        self.countdown -= 1
        if self.countdown > 0:
            return
        if self.is_looking:
            self.is_looking = False
            self.judge(report, buckets)
        elif self.may_be_dense and self.expected_dense(report, buckets) < statistics.median(
            self.exposed
        ):
            self.begin_run(FIRST_RUN, "an all-reduce may be hidden better than frames")
        else:
            self.choose_frames(report, buckets)
            self.countdown = FIRST_PAUSE

    def judge(self, report: StepReport, buckets: int) -> None:
        dense = report.dense_step
        sieve = statistics.median(self.steps)
        measured = f"{1000 * dense:.1f} ms a dense step, {1000 * sieve:.1f} ms with frames"
        if dense <= WORTH * sieve:
            self.pause = FIRST_PAUSE
            self.begin_run(min(LONGEST_RUN, 2 * self.run), measured)
            return
        self.choose_frames(report, buckets)
        self.reason = measured
        self.pause = min(LONGEST_PAUSE, 2 * self.pause)
        self.countdown, self.run = self.pause, FIRST_RUN

    def begin_run(self, steps: int, reason: str) -> None:
        self.run = self.dense_left = steps
        self.steps.clear()
        self.exposed.clear()
        self.reason = reason

    def expected_dense(self, report: StepReport, buckets: int) -> float:
        """Return the seconds that dense all-reduces would add to a step."""
        seconds = DENSE.seconds(self.links, self.gradient_bytes, 0.0)
        return max(seconds / buckets, seconds - report.window)

    def choose_frames(self, report: StepReport, buckets: int) -> None:
        # The bytes that a rank encodes, as a multiple of a frame of all buckets.
        made = self.frames.work(self.links, 1, 1).made
        frame_bytes = report.frame_bytes / made / buckets
        bucket_bytes = self.gradient_bytes / buckets
        seconds = {
            topology: buckets * topology.seconds(self.links, bucket_bytes, frame_bytes)
            for topology in FRAMES
        }
        best = min(seconds, key=lambda topology: seconds[topology])
        if seconds[self.frames] - seconds[best] > LEAST_GAIN * report.step:
            self.frames = best
            self.steps.clear()
            self.exposed.clear()
        self.reason = ", ".join(
            f"{1000 * taken:.1f} ms of {topology.name}"
            for topology, taken in seconds.items()
            if taken < math.inf
        )
