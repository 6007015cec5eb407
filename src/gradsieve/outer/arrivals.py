"""Who came last to an exchange, without a clock that all ranks share."""

import time
from collections.abc import Callable

from gradsieve.exchange.groups import Groups
from gradsieve.exchange.notes import Notes


class Arrivals:
    """Ranks tell each other how long they took since they last met: that moment they share.

    All ranks must make one together; it has a group of its own, since it meets while
    others plan the way of a bucket.
    """

    def __init__(self, groups: Groups) -> None:
        self._exchange = groups.open_another(Notes([0.0]))
        self._met = time.perf_counter()
        self.slowest_rank = 0
        self.waited_seconds = 0.0
        """This rank, in the last meeting."""

    def come(self) -> Callable[[], None]:
        """This rank is here; returns the meeting, for the communication thread."""
        took = time.perf_counter() - self._met
        return lambda: self._meet(took)

    def _meet(self, took: float) -> None:
        notes = self._exchange.notes
        notes.mine, notes.seconds = [took], 0.0
        self._exchange.exchange_sizes([0] * self._exchange.world_size)
        self._met, self.waited_seconds = time.perf_counter(), notes.seconds
        seconds = [seconds for (seconds,) in notes.heard]
        self.slowest_rank = seconds.index(max(seconds))
