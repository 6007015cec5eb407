"""exchange="auto": which way the gradients take, by what steps have taken so far."""

import statistics
from collections import deque
from typing import Literal

from gradsieve.accounts import Account
from gradsieve.exchange.cost import LinkCost

Way = Literal["gather", "two-shot", "dense"]

REMEMBERED = 10
"""Steps of the sieve that medians are taken of."""
FIRST_RUN, LONGEST_RUN = 5, 160
"""Dense steps in a row; as long as they are quicker each run is twice as long as the last."""
FIRST_REASON = "the first steps: the optimizer gets to know every element"
LOOK = 4
"""Steps of the sieve after a run: what ranks tell each other travels with frames, a step late."""
FIRST_PAUSE, LONGEST_PAUSE = 10, 320
"""Steps of the sieve until a dense run is tried again; after each that was slower twice as many."""
FIRST_SECONDS = 20.0
"""For the dense steps at the start, as the link promises."""
WORTH = 1.02
"""Times a step with frames: a dense one that takes no longer is preferred, it loses nothing."""
LEAST_GAIN = 0.02
"""Of a step: what saves less is no reason to prune the sum as well."""


class Choice:
    """The way of the next step; on the same accounts it is the same on all ranks.

    The first steps are dense: optimizers that divide by a running mean of squares (Adam) then know
    every element, and steps are measured. Whether the dense way is quicker is tried again where the
    cost model says that it may be: what an all-reduce takes of the processor is known to no model.
    Which way frames take is computed.

    Args:
        ranks: of the group.
        gradient_bytes: of all gradients, as an all-reduce sends them.
        link: measured at the start.
    """

    def __init__(self, ranks: int, gradient_bytes: int, link: LinkCost) -> None:
        self.ranks, self.gradient_bytes, self.link = ranks, gradient_bytes, link
        self.frames: Way = "gather"
        first = min(FIRST_RUN, FIRST_SECONDS / max(1e-9, link.all_reduce(ranks, gradient_bytes)))
        self.steps: deque[float] = deque(maxlen=REMEMBERED)
        """Seconds of the sieve's steps."""
        self.exposed: deque[float] = deque(maxlen=REMEMBERED)
        self.run = self.dense_left = int(first)
        self.reason = FIRST_REASON if self.run else "nothing is measured yet"
        self.pause = self.countdown = FIRST_PAUSE
        self.is_looking = False

    @property
    def way(self) -> Way:
        return "dense" if self.dense_left else self.frames

    def end_dense_step(self) -> None:
        self.dense_left -= 1
        if not self.dense_left and self.run >= FIRST_RUN:
            self.is_looking, self.countdown = True, LOOK
            self.reason = "to see what the sieve would take"

    def end_sieve_step(self, account: Account, buckets: int) -> None:
        """After a step with frames, by the slowest rank's account of such a step not long ago."""
        self.steps.append(account.step)
        self.exposed.append(account.exposed)
        self.countdown -= 1
        if self.countdown > 0:
            return
        if self.is_looking:
            self.is_looking = False
            self.judge(account, buckets)
        elif self.expected_dense(account, buckets) < statistics.median(self.exposed):
            self.begin_run(FIRST_RUN, "an all-reduce may be hidden better than frames")
        else:
            self.choose_frames(account, buckets)
            self.countdown = FIRST_PAUSE

    def judge(self, account: Account, buckets: int) -> None:
        dense = account.dense_step
        sieve = statistics.median(self.steps)
        measured = f"{1000 * dense:.1f} ms a dense step, {1000 * sieve:.1f} ms with frames"
        if dense <= WORTH * sieve:
            self.pause = FIRST_PAUSE
            self.begin_run(min(LONGEST_RUN, 2 * self.run), measured)
            return
        self.choose_frames(account, buckets)
        self.reason = measured
        self.pause = min(LONGEST_PAUSE, 2 * self.pause)
        self.countdown, self.run = self.pause, FIRST_RUN

    def begin_run(self, steps: int, reason: str) -> None:
        self.run = self.dense_left = steps
        self.steps.clear()
        self.reason = reason

    def expected_dense(self, account: Account, buckets: int) -> float:
        """Seconds that an all-reduce of everything would add to a step."""
        seconds = self.link.all_reduce(self.ranks, self.gradient_bytes)
        return max(seconds / buckets, seconds - account.window)

    def choose_frames(self, account: Account, buckets: int) -> None:
        # The owner's frame of sums is of one part of as many as there are ranks.
        frames = 1 + 1 / self.ranks if self.frames == "two-shot" else 1
        first_frames = account.frame_bytes / frames / buckets
        gather = buckets * self.link.gather(self.ranks, first_frames)
        two_shot = buckets * self.link.two_shot(self.ranks, first_frames)
        saved = gather - two_shot
        if abs(saved) > LEAST_GAIN * account.step:
            self.frames = "two-shot" if saved > 0 else "gather"
        self.reason = f"{1000 * gather:.1f} ms of gather, {1000 * two_shot:.1f} ms in two shots"
