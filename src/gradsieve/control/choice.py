"""exchange="auto": which way the gradients take, by what steps have taken so far."""

import statistics
from collections import deque
from typing import Literal

from gradsieve.bucket.plan import Way
from gradsieve.control.reports import Account
from gradsieve.exchange.cost import LinkCost, NodeCost

REMEMBERED = 10
"""Steps of the sieve that medians are taken of."""
FIRST_RUN, LONGEST_RUN = 5, 160
"""Dense steps in a row; as long as they are quicker each run is twice as long as the last."""
FIRST_REASON = "the first steps: the optimizer gets to know every element"
LOOK = 4
"""Steps of the sieve after a run: what ranks tell each other travels with frames, a step late."""
FIRST_PAUSE, LONGEST_PAUSE = 10, 320
"""Steps of the sieve until a dense run is tried again; after each that was slower twice as many."""
FIRST_SECONDS = 60.0
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
        link, nodes: as measured.
        may_be_dense: everything may travel, where that is quicker.
    """

    def __init__(
        self,
        ranks: int,
        gradient_bytes: int,
        link: LinkCost,
        nodes: NodeCost | None = None,
        *,
        may_be_dense: bool = True,
    ) -> None:
        self.may_be_dense = may_be_dense
        self.ranks, self.gradient_bytes = ranks, gradient_bytes
        self.link, self.nodes = link, nodes
        self.frame_way: Way = "gather" if nodes is None else "hierarchical"
        first = min(FIRST_RUN, FIRST_SECONDS / max(1e-9, link.all_reduce(ranks, gradient_bytes)))
        self.steps: deque[float] = deque(maxlen=REMEMBERED)
        """Seconds of the sieve's steps."""
        self.exposed: deque[float] = deque(maxlen=REMEMBERED)
        self.run = self.dense_left = int(first) if may_be_dense else 0
        self.reason = FIRST_REASON if self.run else "nothing is measured yet"
        self.pause = self.countdown = FIRST_PAUSE
        self.is_looking = False

    @property
    def way(self) -> Way | Literal["dense"]:
        return "dense" if self.dense_left else self.frame_way

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
        elif self.may_be_dense and self.expected_dense(account, buckets) < statistics.median(
            self.exposed
        ):
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
        self.exposed.clear()
        self.reason = reason

    def expected_dense(self, account: Account, buckets: int) -> float:
        """Seconds that an all-reduce of everything would add to a step."""
        seconds = self.link.all_reduce(self.ranks, self.gradient_bytes)
        return max(seconds / buckets, seconds - account.window)

    def choose_frames(self, account: Account, buckets: int) -> None:
        frame_bytes = account.frame_bytes / self.share_of_a_frame() / buckets
        seconds: dict[Way, float] = {
            "gather": buckets * self.link.gather(self.ranks, frame_bytes),
            "two-shot": buckets * self.link.two_shot(self.ranks, frame_bytes),
        }
        if self.nodes is not None:
            bucket_bytes = self.gradient_bytes / buckets
            each = self.nodes.hierarchical(self.ranks, bucket_bytes, frame_bytes)
            seconds["hierarchical"] = buckets * each
        best = min(seconds, key=lambda way: seconds[way])
        if seconds[self.frame_way] - seconds[best] > LEAST_GAIN * account.step:
            self.frame_way = best
            self.steps.clear()
            self.exposed.clear()
        self.reason = ", ".join(f"{1000 * s:.1f} ms of {way}" for way, s in seconds.items())

    def share_of_a_frame(self) -> float:
        """What a rank sends of frames, to one rank or as sums, over one frame of all buckets."""
        if self.frame_way == "two-shot":
            # The owner's frame of sums is of one part of as many as there are ranks.
            return 1 + 1 / self.ranks
        if self.frame_way == "hierarchical" and self.nodes is not None:
            return 1 / self.nodes.size
        return 1.0
